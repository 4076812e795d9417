// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A block is there until we punch it, and the guest may take a piece of it back at any time. So it
 * is write-protected first, within its window. Whoever has written to it before, and was allowed
 * to, had told QEMU so before that: it is in the log by now, which is drained once more. Whoever
 * writes later waits, and finds the block missing. The same holds for a reset, which the monitor
 * tells of: where it may do so late, the block stays protected for as long.
 */
#include <stdatomic.h>

#include "answer.h"
#include "clock.h"
#include "counters.h"
#include "drop.h"
#include "gather.h"
#include "ledger.h"
#include "mailbox.h"
#include "observe.h"
#include "pages.h"
#include "pieces.h"
#include "reset.h"
#include "uffdballoon.h"
#include "windows.h"

typedef void each_block_fn(struct uffdb_engine *engine, uint64_t block);

static void for_each_block(struct uffdb_engine *engine, const struct uffdb_ledger *of,
			   each_block_fn *each)
{
	const struct uffdb_block *blocks;
	struct uffdb_range run;
	size_t nr;

	blocks = uffdb_ledger_blocks(of, &nr);
	for (size_t i = 0; i < nr; i++) {
		uint64_t at = blocks[i].hva, end = at + blocks[i].size;

		while (at < end && uffdb_ledger_next(of, at, end, &run) > 0) {
			for (at = run.start; at < run.start + run.len; at += UFFDB_HUGE)
				each(engine, at);
		}
	}
}

/* Without its window it cannot be, and waits on. */
static void guard_block(struct uffdb_engine *engine, uint64_t block)
{
	struct uffdb_pieces *pieces = engine->observer->pieces;

	if (uffdb_windows_is_armed(engine->windows, block) &&
	    !uffdb_uffd_writeprotect(engine->config.uffd, block, UFFDB_HUGE, true))
		uffdb_ledger_set(pieces->guarded, block, UFFDB_HUGE);
}

static void guard_waiting(struct uffdb_engine *engine, void *argument)
{
	struct uffdb_pieces *pieces = engine->observer->pieces;

	(void)argument;
	for_each_block(engine, pieces->waiting, guard_block);
	pieces->guarded_ns = uffdb_now_ns(CLOCK_MONOTONIC);
}

static void punch_or_give_back(struct uffdb_engine *engine, const struct uffdb_range *block)
{
	int error = uffdb_drop_block(engine, block);

	if (error) {
		uffdb_count_failed(&engine->counters, error);
		uffdb_observe_refusal(engine, block);
	} else {
		uffdb_pieces_punched(engine->observer->pieces, block->start);
	}
	/* Whoever waits at it is woken, and the mark that is left of it taken off (drop.c). */
	uffdb_answer_unprotect(&engine->answerer, block);
}

static void punch_block(struct uffdb_engine *engine, void *argument)
{
	const struct uffdb_range *block = argument;

	if (engine->relay)
		uffdb_hear_of_late_reset(engine);
	if (uffdb_ledger_test(engine->observer->pieces->guarded, block->start) > 0 &&
	    !atomic_load(&engine->yielded))
		punch_or_give_back(engine, block);
}

/* In a call of its own each: faults are answered in between. */
static void call_for_punch(struct uffdb_engine *engine, uint64_t block)
{
	struct uffdb_range of = {block, UFFDB_HUGE};

	uffdb_call_on_loop(engine, punch_block, &of);
}

bool uffdb_gather(struct uffdb_engine *engine)
{
	struct uffdb_pieces *pieces = engine->observer->pieces;

	if (!pieces || !uffdb_ledger_pages(pieces->waiting) || atomic_load(&engine->yielded))
		return false;
	if (!uffdb_ledger_pages(pieces->guarded))
		uffdb_call_on_loop(engine, guard_waiting, NULL);
	if (uffdb_now_ns(CLOCK_MONOTONIC) >= pieces->guarded_ns + engine->config.reset_delay_ns)
		for_each_block(engine, pieces->guarded, call_for_punch);
	/* What came meanwhile, or cannot be guarded yet, for the next time. */
	if (!uffdb_ledger_pages(pieces->guarded) && uffdb_ledger_pages(pieces->waiting))
		uffdb_call_on_loop(engine, guard_waiting, NULL);
	return uffdb_ledger_pages(pieces->guarded) > 0;
}
