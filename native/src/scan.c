// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Observing by residency: what held memory at the last look and does not at this one was given up.
 * For where nothing tells of discards; a page that is given up and used again between two looks is
 * not seen.
 */
#include <errno.h>

#include "clock.h"
#include "counters.h"
#include "engine.h"
#include "follow.h"
#include "ledger.h"
#include "mailbox.h"
#include "observe.h"
#include "pagemap.h"
#include "pages.h"
#include "scan.h"
#include "uffdballoon.h"
#include "windows.h"

#define RANGES 256

static void take_back_present(struct uffdb_engine *engine, const struct uffdb_range *range,
			      void *argument)
{
	(void)argument;
	uffdb_ledger_clear(engine->ledger, range->start, range->len);
	uffdb_forget_reports(engine, range->start, range->len);
	uffdb_windows_note_change(engine->windows, range->start);
}

struct scanned {
	struct uffdb_range range;
	int64_t pages;
};

static void take_gone(struct uffdb_engine *engine, void *argument)
{
	struct scanned *gone = argument;
	int64_t pages = uffdb_ledger_set(engine->ledger, gone->range.start, gone->range.len);
	uint64_t now = uffdb_now_ns(CLOCK_MONOTONIC);

	/* In a window the loop alone fills, and it is here: what came back since the scan is seen.
	 */
	uffdb_in_ballooned(engine, &gone->range, uffdb_resident, take_back_present, NULL);
	/*
	 * Zeros that are there: a page that was given up and read since, which is to take it
	 * back where scans serve (cap); or one of zeros that was never given up, and that a
	 * split or KSM has mapped to the zero page.
	 */
	uffdb_in_ballooned(engine, &gone->range, uffdb_loose_zero_pages, take_back_present, NULL);
	for (uint64_t at = gone->range.start; at < gone->range.start + gone->range.len;
	     at = (at / UFFDB_HUGE + 1) * UFFDB_HUGE)
		uffdb_windows_note_inflate(engine->windows, at, now);
	uffdb_count(&engine->observer->inflated, (uint64_t)pages);
	gone->pages = pages;
}

/* Of [start, end) nothing is there: what was at the last scan has been given up. */
static int64_t all_gone(struct uffdb_engine *engine, uint64_t start, uint64_t end)
{
	struct uffdb_ledger *seen = engine->observer->seen;
	struct scanned gone;
	int64_t pages = 0;

	while (start < end && uffdb_ledger_next(seen, start, end, &gone.range) > 0) {
		uffdb_ledger_clear(seen, gone.range.start, gone.range.len);
		uffdb_call_on_loop(engine, take_gone, &gone);
		pages += gone.pages;
		start = gone.range.start + gone.range.len;
	}
	return pages;
}

static int64_t scan_block(struct uffdb_engine *engine, const struct uffdb_block *block)
{
	uint64_t at = block->hva, end = at + block->size, next;
	struct uffdb_range there[RANGES];
	int64_t pages = 0;

	while (at < end) {
		int nr = uffdb_resident(engine->config.pagemap_fd, at, end, there, RANGES, &next);

		if (nr < 0)
			return nr;
		for (int i = 0; i < nr; i++) {
			pages += all_gone(engine, at, there[i].start);
			uffdb_ledger_set(engine->observer->seen, there[i].start, there[i].len);
			at = there[i].start + there[i].len;
		}
		next = next > at ? next : end;
		pages += all_gone(engine, at, next);
		at = next;
	}
	return pages;
}

int64_t uffdb_scan(struct uffdb_engine *engine)
{
	const struct uffdb_block *blocks;
	int64_t pages = 0;
	size_t nr;

	if (engine->config.observing != UFFDB_OBSERVE_SCAN)
		return -EINVAL;
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		int64_t more = scan_block(engine, &blocks[i]);

		if (more < 0)
			return more;
		pages += more;
	}
	return pages;
}

int64_t uffdb_engine_scan(struct uffdb_engine *engine)
{
	int64_t pages;

	pthread_mutex_lock(&engine->control);
	pages = uffdb_scan(engine);
	pthread_mutex_unlock(&engine->control);
	return pages;
}
