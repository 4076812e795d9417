// SPDX-License-Identifier: GPL-2.0-or-later
#include "settle.h"
#include "answer.h"
#include "clock.h"
#include "counters.h"
#include "drop.h"
#include "engine.h"
#include "events.h"
#include "ladder.h"
#include "ledger.h"
#include "observe.h"
#include "parking.h"
#include "process.h"
#include "scarce.h"
#include "touch.h"
#include "uffdballoon.h"
#include "windows.h"

static void post(struct uffdb_engine *engine, const struct uffdb_touch *touch, uint8_t verdict,
		 uint8_t action)
{
	uffdb_events_post(&engine->events, &engine->counters, touch, verdict, action);
}

/* Call a page the guest's. Before it is answered: it must not be judged as ballooned again. */
static void call_owned(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	uffdb_ledger_clear(engine->ledger, touch->hva, touch->size);
	uffdb_forget_reports(engine, touch->hva, touch->size);
	uffdb_forget_pieces(engine, touch->hva, touch->size);
	uffdb_windows_note_change(engine->windows, touch->hva);
}

/* Whoever else was held at these pages is let go by the same answer. */
static void forget_held(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	while (uffdb_parking_count(&engine->parking) &&
	       uffdb_parking_take_in(&engine->parking, hva, len, NULL))
		;
}

void uffdb_let_go(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	struct uffdb_held held;

	while (uffdb_parking_count(&engine->parking) &&
	       uffdb_parking_take_in(&engine->parking, hva, len, &held))
		uffdb_answer_retry(&engine->answerer, &held.touch);
}

void uffdb_give(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	if (uffdb_answer_page(&engine->answerer, touch)) {
		uffdb_hold_for_memory(engine, touch, UFFDB_LACKS_PAGE);
		return;
	}
	forget_held(engine, touch->hva, touch->size);
	/* Its window was kept for as long as the page was absent: windows.c. */
	if (uffdb_is_huge(touch))
		uffdb_windows_note_change(engine->windows, touch->hva);
}

void uffdb_give_around(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	uint64_t len = uffdb_answer_around(&engine->answerer, touch);

	if (len)
		forget_held(engine, touch->hva, len);
	else
		uffdb_give(engine, touch);
}

/* Of what may be lacking, before the page is called the guest's: its window must stay. */
static void grant_scarce(struct uffdb_engine *engine, const struct uffdb_touch *touch,
			 uint8_t verdict, uint8_t action)
{
	if (uffdb_answer_fill_asleep(&engine->answerer, touch)) {
		struct uffdb_touch held = *touch;

		held.lacking_verdict = verdict;
		held.lacking_action = action;
		uffdb_hold_for_memory(engine, &held, UFFDB_LACKS_GRANT);
		return;
	}
	call_owned(engine, touch);
	post(engine, touch, verdict, action);
	forget_held(engine, touch->hva, touch->size);
	uffdb_answer_wake(&engine->answerer, touch);
}

void uffdb_grant(struct uffdb_engine *engine, const struct uffdb_touch *touch, uint8_t verdict,
		 uint8_t action)
{
	if (uffdb_is_huge(touch) && !touch->protected && !touch->minor) {
		grant_scarce(engine, touch, verdict, action);
		return;
	}
	call_owned(engine, touch);
	post(engine, touch, verdict, action);
	uffdb_give(engine, touch);
}

void uffdb_grant_around(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	if (uffdb_is_huge(touch)) {
		uffdb_grant(engine, touch, UFFDB_GRANTED, UFFDB_ACTION_GRANT);
		return;
	}
	call_owned(engine, touch);
	post(engine, touch, UFFDB_GRANTED, UFFDB_ACTION_GRANT);
	uffdb_give_around(engine, touch);
}

/* It did not stay a read of zeros. */
static void tell_after_all(struct uffdb_engine *engine, struct uffdb_touch *touch)
{
	if (touch->told)
		uffdb_count(&engine->counters.violations, 1);
	touch->told = false;
}

bool uffdb_give_zeros(struct uffdb_engine *engine, struct uffdb_touch *touch)
{
	bool host_reads = touch->role == UFFDB_ROLE_HOST_READER;
	enum uffdb_zeroed zeroed = uffdb_answer_zeros(&engine->answerer, touch);

	switch (zeroed) {
	case UFFDB_WRITTEN:
		uffdb_count(&engine->counters.slipped_writes, 1);
		touch->write = true;
		touch->protected = true;
		tell_after_all(engine, touch);
		return false;
	case UFFDB_NO_PAGE:
		uffdb_hold_for_memory(engine, touch, UFFDB_LACKS_ZEROS);
		return true;
	case UFFDB_UNPROTECTED:
		tell_after_all(engine, touch);
		call_owned(engine, touch);
		post(engine, touch, host_reads ? UFFDB_GRANTED : UFFDB_VIOLATION,
		     UFFDB_ACTION_GRANT);
		uffdb_answer_retry(&engine->answerer, touch);
		return true;
	default:
		if (host_reads)
			uffdb_count(&engine->counters.host_reads, 1);
		else if (!touch->told)
			post(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_ZERO_READ);
		if (zeroed == UFFDB_ZEROED) {
			if (!uffdb_is_zero_shared(touch->block))
				uffdb_lend(engine, touch->hva, touch->size, !host_reads);
			uffdb_answer_retry(&engine->answerer, touch);
		}
		return true;
	}
}

/* False when the table is full. */
static bool hold(struct uffdb_engine *engine, const struct uffdb_touch *touch,
		 const struct uffdb_decision *decision)
{
	const struct uffdb_held held = {
		.touch = *touch,
		.since_ns = touch->lacking_since_ns ? touch->lacking_since_ns
						    : uffdb_now_ns(CLOCK_MONOTONIC),
		.deadline_ns = decision->deadline_ns,
		.rung = decision->rung,
		.action = decision->action,
	};

	if (!uffdb_parking_add(&engine->parking, &held))
		return false;
	/* Who waits for a token is told of when it gets one. */
	if (decision->action != UFFDB_ACTION_THROTTLE)
		post(engine, touch, UFFDB_VIOLATION, decision->action);
	return true;
}

static bool poison(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	int error;

	post(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_POISON);
	error = uffdb_answer_poison(&engine->answerer, touch);
	if (error)
		uffdb_count_failed(&engine->counters, error);
	return !error;
}

/* False when it could not be done, and the next rung is to decide. */
static bool carry_out(struct uffdb_engine *engine, struct uffdb_touch *touch,
		      const struct uffdb_decision *decision)
{
	switch (decision->outcome) {
	case UFFDB_OUTCOME_ZERO_READ:
		return uffdb_give_zeros(engine, touch);
	case UFFDB_OUTCOME_HOLD:
		return hold(engine, touch, decision);
	case UFFDB_OUTCOME_POISON:
		return poison(engine, touch);
	case UFFDB_OUTCOME_KILL:
		post(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_KILL);
		uffdb_process_kill(engine->config.pidfd);
		return true;
	default:
		uffdb_grant(engine, touch, UFFDB_VIOLATION, decision->action);
		return true;
	}
}

static struct uffdb_decision decide(struct uffdb_engine *engine, const struct uffdb_touch *touch,
				    uint32_t rung)
{
	return uffdb_ladder_decide(&engine->ladder, touch, rung, uffdb_now_ns(CLOCK_MONOTONIC));
}

static void carry_out_or_go_on(struct uffdb_engine *engine, struct uffdb_touch *touch,
			       struct uffdb_decision decision)
{
	while (!carry_out(engine, touch, &decision))
		decision = decide(engine, touch, decision.rung + 1);
}

void uffdb_settle(struct uffdb_engine *engine, struct uffdb_touch *touch, uint32_t rung)
{
	carry_out_or_go_on(engine, touch, decide(engine, touch, rung));
}

void uffdb_settle_held(struct uffdb_engine *engine, struct uffdb_held *held)
{
	struct uffdb_decision decision = decide(engine, &held->touch, 0);
	uint64_t hold_ns;

	if (held->action != UFFDB_ACTION_FREEZE || decision.action != UFFDB_ACTION_FREEZE) {
		carry_out_or_go_on(engine, &held->touch, decision);
		return;
	}
	/* It was told, and its time runs. There is room: it was just taken out. */
	hold_ns = engine->ladder.rungs[decision.rung].hold_ns;
	held->rung = decision.rung;
	held->deadline_ns = hold_ns ? held->since_ns + hold_ns : 0;
	uffdb_parking_add(&engine->parking, held);
}
