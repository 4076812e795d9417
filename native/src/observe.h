/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is known of the guest's own balloon, beside the ledger. The fault loop's, unless said. */
#ifndef UFFDB_OBSERVE_H
#define UFFDB_OBSERVE_H

#include "engine.h"
#include "pages.h"
#include "pieces.h"
#include "toggles.h"
#include "trace.h"

#define UFFDB_HISTORY 65536 /* changes that a reset may have come before */

struct uffdb_change {
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	uint64_t hva;
	uint64_t len;
	bool inflate;
	bool toggle;	  /* it was not told which */
	uint32_t span_ms; /* it came in so long from @time_ns, rounded up; 0: at that time */
	bool reported;	  /* free, rather than put into the balloon */
};

struct uffdb_observer {
	struct uffdb_trace *trace;     /* or NULL */
	struct uffdb_toggles *toggles; /* of a trace by a log, or NULL */
	struct uffdb_pieces *pieces;   /* of huge pages, which are told of by a log; or NULL */
	uint64_t drain_ns;	       /* when the drain began, where there are toggles */
	struct uffdb_change *history;
	uint64_t nr_history; /* ever; the last UFFDB_HISTORY are there */

	bool doubt;
	struct uffdb_ledger *doubtful; /* ballooned, but for records that were lost */

	/* Ballooned pages that held memory when their window was new: follow.c. */
	struct uffdb_ledger *suspected;
	bool suspects;		/* the controlling side's, as the next */
	uint64_t look_again_ns; /* when what is still there has been touched */
	_Atomic bool look_everywhere;
	int64_t locked_bytes; /* of the target, as of this look; below 0: not asked yet */

	/* In the ledger, because free page reporting gave them up: gift.c. */
	struct uffdb_ledger *reported;

	struct uffdb_ledger *lately; /* given up while their window was slack: slack.c */

	struct uffdb_ledger *seen; /* the controlling side's: that held memory at the last scan */

	/* @counted: of @reported_bytes, what was put into the ledger. */
	uint64_t last_hva, run_pages; /* of the inflates as they come */
	_Atomic uint64_t arrivals[UFFDB_ORDERS];
	_Atomic uint64_t traced, inflated, deflated, reported_bytes, counted, regained, refused,
		lost, resyncs, doubts;
	_Atomic uint64_t given_twice, late, late_reads, arm_ns_max;
};

int uffdb_observer_create(struct uffdb_engine *engine);
void uffdb_observer_destroy(struct uffdb_observer *observer);

/* Go on after another engine; @missed: nobody observed for a while, as when records are lost. */
void uffdb_observe_on(struct uffdb_engine *engine, bool missed);

/* Take in all that was traced before now. */
void uffdb_observe(struct uffdb_engine *engine);

/* The kernel has refused to discard these: what they hold is the guest's as it was. */
void uffdb_observe_refusal(struct uffdb_engine *engine, const struct uffdb_range *range);

/* Given up or taken back anew: whatever records were lost before, this is known. */
void uffdb_observe_certainty(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

void uffdb_observe_removal(struct uffdb_engine *engine, uint64_t start, uint64_t end);
void uffdb_observe_unmapping(struct uffdb_engine *engine, uint64_t start, uint64_t end);
void uffdb_observe_again(struct uffdb_engine *engine, uint64_t at_ns);
/* What is not in the balloon any more was not reported free, either. */
static inline void uffdb_forget_reports(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	if (engine->observer && uffdb_ledger_pages(engine->observer->reported))
		uffdb_ledger_clear(engine->observer->reported, hva, len);
}

/* Pieces of huge pages, too, that somebody else has got. */
static inline void uffdb_forget_pieces(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	if (engine->observer && engine->observer->pieces)
		uffdb_pieces_forget(engine->observer->pieces, hva, len);
}

/* Does it hold memory because nobody has punched it out yet? */
static inline bool uffdb_is_to_be_punched(const struct uffdb_engine *engine, uint64_t hva)
{
	return engine->observer->pieces &&
	       uffdb_ledger_test(engine->observer->pieces->waiting, hva) > 0;
}

/* Is all of a range in the balloon, and was reported free? */
static inline bool uffdb_is_reported(const struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	return uffdb_ledger_count(engine->observer->reported, hva, len) == len / UFFDB_PAGE &&
	       uffdb_ledger_count(engine->ledger, hva, len) == len / UFFDB_PAGE;
}

/* Reports count no longer: what is in the ledger for them is the guest's. */
void uffdb_observe_no_reports(struct uffdb_engine *engine);
bool uffdb_is_doubtful(const struct uffdb_engine *engine, uint64_t hva);

#endif
