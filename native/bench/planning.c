// SPDX-License-Identifier: GPL-2.0-or-later
/* The planner over a ledger of any size, with nothing to register in. */
#include <errno.h>
#include <stdlib.h>

#include "../src/clock.h"
#include "../src/ledger.h"
#include "../src/pages.h"
#include "../src/planner.h"
#include "bench.h"
#include "uffdballoon.h"

static int count_call(void *calls, uint64_t first, uint64_t last)
{
	(void)first;
	(void)last;
	++*(uint64_t *)calls;
	return 0;
}

static bool holds_ballooned(const struct uffdb_ledger *ledger, uint64_t hva)
{
	struct uffdb_range found;

	return uffdb_ledger_next(ledger, hva, hva + UFFDB_HUGE, &found) > 0;
}

static void mark_all(struct uffdb_planner *planner, const struct uffdb_ledger *ledger,
		     const struct uffdb_block *block)
{
	struct uffdb_range found;
	uint64_t at = block->hva, end = block->hva + block->size;

	while (at < end && uffdb_ledger_next(ledger, at, end, &found) > 0) {
		uint64_t unit = (found.start - block->hva) / UFFDB_HUGE;
		uint64_t last = (found.start + found.len - 1 - block->hva) / UFFDB_HUGE;

		for (; unit <= last; unit++)
			uffdb_planner_mark(planner, unit);
		at = block->hva + unit * UFFDB_HUGE; /* the rest of the block says nothing new */
	}
}

/* One 2 MiB block goes out of the balloon and comes back: two changes of the plan. */
static int change_one(struct uffdb_planner *planner, const struct uffdb_ledger *ledger,
		      const struct uffdb_block *block, uint64_t unit)
{
	int error = uffdb_planner_release(planner, unit, unit + 1);

	if (!error && holds_ballooned(ledger, block->hva + unit * UFFDB_HUGE))
		error = uffdb_planner_need(planner, unit, unit + 1);
	return error;
}

static int by_value(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return left < right ? -1 : left > right;
}

static int time_changes(struct uffdb_planner *planner, const struct uffdb_ledger *ledger,
			const struct uffdb_block *block, struct uffdb_bench_plan *result)
{
	uint64_t units = block->size / UFFDB_HUGE, *took, nr = result->changes;
	int error = 0;

	took = calloc(nr, sizeof(*took));
	if (!took)
		return -ENOMEM;
	for (uint64_t i = 0; !error && i < nr; i++) {
		/* Knuth's multiplier: all over the block, in no order. */
		uint64_t unit = (uint64_t)((__uint128_t)(i * 0x9e3779b97f4a7c15ull) * units >> 64);
		uint64_t begin = uffdb_now_ns(CLOCK_MONOTONIC);

		error = change_one(planner, ledger, block, unit);
		took[i] = uffdb_now_ns(CLOCK_MONOTONIC) - begin;
		if (uffdb_planner_windows(planner) > result->most_windows)
			result->most_windows = uffdb_planner_windows(planner);
	}
	qsort(took, nr, sizeof(*took), by_value);
	result->change_p50_ns = took[nr / 2];
	result->change_p99_ns = took[nr * 99 / 100];
	result->change_max_ns = took[nr - 1];
	free(took);
	return error;
}

int uffdb_bench_plan(const struct uffdb_ledger *ledger, uint64_t budget, uint64_t changes,
		     struct uffdb_bench_plan *result)
{
	size_t nr;
	const struct uffdb_block *block = uffdb_ledger_blocks(ledger, &nr);
	uint64_t calls = 0, begin;
	const struct uffdb_planner_ops ops = {count_call, count_call, NULL, &calls};
	struct uffdb_planner *planner;
	int error;

	if (nr != 1 || !changes)
		return -EINVAL;
	*result = (struct uffdb_bench_plan){.changes = changes};
	begin = uffdb_now_ns(CLOCK_MONOTONIC);
	error = uffdb_planner_create(block->size / UFFDB_HUGE, budget, &ops, &planner);
	if (error)
		return error;
	mark_all(planner, ledger, block);
	error = uffdb_planner_replan(planner);
	result->scratch_ns = uffdb_now_ns(CLOCK_MONOTONIC) - begin;
	result->windows = result->most_windows = uffdb_planner_windows(planner);
	result->needed_bytes = uffdb_planner_needed(planner) * UFFDB_HUGE;
	result->armed_bytes = uffdb_planner_armed(planner) * UFFDB_HUGE;
	result->memory_bytes = uffdb_planner_memory(planner);
	if (!error)
		error = time_changes(planner, ledger, block, result);
	uffdb_planner_destroy(planner);
	return error;
}
