// SPDX-License-Identifier: GPL-2.0-or-later
/* The planner on a real kernel: budgets, and no room for another VMA. */
#include <errno.h>

#include "engine_setup.h"

static void inflate_every_second_block(struct setup *setup, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		CHECK(uffdb_engine_inflate(setup->engine, address(setup) + 2 * i * HUGE, PAGE) ==
		      1);
}

static struct uffdb_engine_config observing(uint64_t window_budget)
{
	return (struct uffdb_engine_config){
		.window_budget = window_budget,
		.nr_rungs = 1,
		.rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
	};
}

static void a_budget_is_kept_and_every_page_still_trapped(void)
{
	struct setup setup;

	make_engine(&setup, 64 * HUGE, observing(5));
	CHECK(!uffdb_engine_start(setup.engine));
	inflate_every_second_block(&setup, 32);
	CHECK(stats_of(&setup).windows <= 5);
	for (uint64_t i = 0; i < 64; i++)
		setup.memory[i * HUGE] = 1;
	CHECK(stats_of(&setup).violations == 32);
	CHECK(uffdb_engine_tidy(setup.engine) > 0);
	CHECK(stats_of(&setup).windows == 0 && stats_of(&setup).armed_bytes == 0);
	tear_down(&setup);
}

static void populated_gaps_are_absorbed_first(void)
{
	struct setup setup;

	make_engine(&setup, 16 * HUGE, observing(2));
	CHECK(!uffdb_engine_start(setup.engine));
	/* Between blocks 0, 2 and 5: a gap of one block, and one of two that is populated. */
	memset(setup.memory + 3 * HUGE, 1, 2 * HUGE);
	CHECK(uffdb_engine_inflate(setup.engine, address(&setup), PAGE) == 1);
	CHECK(uffdb_engine_inflate(setup.engine, address(&setup) + 2 * HUGE, PAGE) == 1);
	CHECK(uffdb_engine_inflate(setup.engine, address(&setup) + 5 * HUGE, PAGE) == 1);
	/* The third asks for room when there are two, and takes the only gap there is. */
	CHECK(stats_of(&setup).windows == 2);
	CHECK(uffdb_engine_inflate(setup.engine, address(&setup) + 9 * HUGE, PAGE) == 1);
	CHECK(stats_of(&setup).windows <= 2);
	setup.memory[HUGE] = 1;
	for (uint64_t at = 3 * HUGE; at < 5 * HUGE; at += PAGE)
		CHECK(setup.memory[at] == 1);
	tear_down(&setup);
}

/* Twice as many windows as there may be mappings: fewer and larger ones take their place. */
static void no_room_for_a_mapping_is_planned_around(void)
{
#ifndef __SANITIZE_THREAD__ /* its shadow of so much memory takes minutes */
	uint64_t count = 40000;
	struct setup setup;

	make_engine(&setup, 2 * count * HUGE, observing(0));
	inflate_every_second_block(&setup, count);
	CHECK(uffdb_ledger_pages(setup.ledger) == count);
	CHECK(stats_of(&setup).windows < 32768);
	CHECK(!uffdb_engine_start(setup.engine));
	for (uint64_t i = 0; i < count; i += 997)
		setup.memory[2 * i * HUGE] = 1;
	CHECK(stats_of(&setup).violations == (count + 996) / 997);
	CHECK(!uffdb_engine_reset(setup.engine, 0));
	CHECK(stats_of(&setup).windows == 0 && stats_of(&setup).armed_bytes == 0);
	tear_down(&setup);
#endif
}

int main(void)
{
	a_budget_is_kept_and_every_page_still_trapped();
	populated_gaps_are_absorbed_first();
	no_room_for_a_mapping_is_planned_around();
	return 0;
}
