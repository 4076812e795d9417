// SPDX-License-Identifier: GPL-2.0-or-later
/* The planner against a plain picture of what it told to register. */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "../src/planner.h"
#include "check.h"

#define UNITS 300
#define STEPS 20000

static struct {
	bool armed[UNITS], needed[UNITS], populated[UNITS], barrier[UNITS];
	uint64_t room; /* windows that the pretended kernel has room for */
} world;

static uint64_t state = 1;

static uint64_t random_below(uint64_t limit)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (state >> 33) % limit;
}

static uint64_t count_windows(void)
{
	uint64_t windows = 0;

	for (int i = 0; i < UNITS; i++)
		windows += world.armed[i] && (!i || !world.armed[i - 1]);
	return windows;
}

static int arm(void *of, uint64_t first, uint64_t last)
{
	(void)of;
	for (uint64_t i = first; i < last; i++) {
		CHECK(!world.armed[i] && !world.barrier[i]);
		world.armed[i] = true;
	}
	if (count_windows() <= world.room)
		return 0;
	for (uint64_t i = first; i < last; i++)
		world.armed[i] = false;
	return -ENOMEM;
}

static int disarm(void *of, uint64_t first, uint64_t last)
{
	(void)of;
	for (uint64_t i = first; i < last; i++) {
		CHECK(world.armed[i] && !world.needed[i]);
		world.armed[i] = false;
	}
	if (count_windows() <= world.room)
		return 0;
	for (uint64_t i = first; i < last; i++)
		world.armed[i] = true;
	return -ENOMEM;
}

static bool populated(void *of, uint64_t first, uint64_t last)
{
	(void)of;
	for (uint64_t i = first; i < last; i++)
		if (!world.populated[i])
			return false;
	return true;
}

static const struct uffdb_planner_ops ops = {arm, disarm, populated, NULL};

static void check(const struct uffdb_planner *planner, uint64_t budget)
{
	uint64_t nr_armed = 0;
	bool useful = true;

	for (int i = 0; i < UNITS; i++) {
		CHECK(world.armed[i] == uffdb_planner_is_armed(planner, (uint64_t)i));
		CHECK(world.armed[i] || !world.needed[i]);
		nr_armed += world.armed[i];
		/* A window without a needed unit must not be. */
		if (world.armed[i] && (!i || !world.armed[i - 1])) {
			CHECK(useful);
			useful = false;
		}
		useful = useful || world.needed[i];
	}
	CHECK(useful || !nr_armed);
	CHECK(nr_armed == uffdb_planner_armed(planner));
	CHECK(count_windows() == uffdb_planner_windows(planner));
	CHECK(count_windows() <= budget);
}

/* A short stretch that no barrier is in, free of barriers by being cut at the first. */
static void random_stretch(uint64_t *first, uint64_t *last)
{
	*first = random_below(UNITS);
	while (world.barrier[*first])
		*first = random_below(UNITS);
	*last = *first + 1;
	while (*last < UNITS && !world.barrier[*last] && random_below(4))
		++*last;
}

static void lives_through_random_changes(uint64_t budget, uint64_t room, uint64_t barriers)
{
	struct uffdb_planner *planner;

	memset(&world, 0, sizeof(world));
	world.room = room;
	CHECK(!uffdb_planner_create(UNITS, budget, &ops, &planner));
	for (uint64_t i = 1; i <= barriers; i++) {
		world.barrier[i * UNITS / (barriers + 1)] = true;
		CHECK(!uffdb_planner_barrier(planner, i * UNITS / (barriers + 1)));
	}
	for (int i = 0; i < UNITS; i++)
		world.populated[i] = random_below(2);
	for (int step = 0; step < STEPS; step++) {
		uint64_t first, last, what = random_below(100);

		random_stretch(&first, &last);
		if (what == 0) {
			CHECK(!uffdb_planner_replan(planner));
		} else if (what < 50) {
			int error = uffdb_planner_need(planner, first, last);

			CHECK(!error || error == -ENOMEM);
			/* With room for a window in each piece, there is always a way. */
			CHECK(!error || room <= barriers);
			if (!error)
				memset(world.needed + first, 1, last - first);
		} else {
			memset(world.needed + first, 0, last - first);
			CHECK(!uffdb_planner_release(planner, first, last));
		}
		check(planner, budget > barriers ? budget : barriers + 1);
	}
	uffdb_planner_destroy(planner);
}

static void absorbs_populated_gaps_first_and_then_the_shortest(void)
{
	/* Gaps of 5, 2, 3 and 1 units; those of 5 and 3 are populated. */
	static const uint64_t needed[] = {0, 6, 9, 13, 15};
	struct uffdb_planner *planner;

	for (uint64_t budget = 5; budget; budget--) {
		static const uint64_t absorbed[] = {11, 9, 8, 3, 0}; /* by budget */

		memset(&world, 0, sizeof(world));
		world.room = UNITS;
		memset(world.populated + 1, 1, 5);
		memset(world.populated + 10, 1, 3);
		CHECK(!uffdb_planner_create(UNITS, budget, &ops, &planner));
		for (int i = 0; i < 5; i++)
			uffdb_planner_mark(planner, needed[i]);
		CHECK(!uffdb_planner_replan(planner));
		CHECK(uffdb_planner_windows(planner) == budget);
		CHECK(uffdb_planner_armed(planner) - 5 == absorbed[budget - 1]);
		uffdb_planner_destroy(planner);
	}
}

static void opens_gaps_again_when_there_is_room(void)
{
	struct uffdb_planner *planner;

	memset(&world, 0, sizeof(world));
	world.room = UNITS;
	CHECK(!uffdb_planner_create(UNITS, 40, &ops, &planner));
	for (uint64_t i = 0; i < UNITS; i += 2) {
		CHECK(!uffdb_planner_need(planner, i, i + 1));
		world.needed[i] = true;
	}
	check(planner, 40);
	CHECK(!uffdb_planner_could_improve(planner));
	for (uint64_t i = 40; i < UNITS; i++)
		world.needed[i] = false;
	CHECK(!uffdb_planner_release(planner, 40, UNITS));
	CHECK(uffdb_planner_could_improve(planner));
	CHECK(!uffdb_planner_replan(planner));
	CHECK(uffdb_planner_armed(planner) == uffdb_planner_needed(planner));
	uffdb_planner_destroy(planner);
}

static int accept(void *of, uint64_t first, uint64_t last)
{
	++*(uint64_t *)of;
	return first < last ? 0 : -EINVAL;
}

static void plans_for_sixteen_tebibytes(void)
{
	uint64_t calls = 0, units = 8ull << 20;
	const struct uffdb_planner_ops counting = {accept, accept, NULL, &calls};
	struct uffdb_planner *planner;

	CHECK(!uffdb_planner_create(units, 16384, &counting, &planner));
	for (uint64_t unit = 0; unit < units; unit += 2)
		uffdb_planner_mark(planner, unit);
	CHECK(!uffdb_planner_replan(planner));
	CHECK(uffdb_planner_windows(planner) == 16384);
	CHECK(calls == 16384);
	for (uint64_t unit = 1; unit < 4096; unit += 2) {
		CHECK(!uffdb_planner_release(planner, unit - 1, unit));
		CHECK(!uffdb_planner_need(planner, unit - 1, unit));
		CHECK(uffdb_planner_windows(planner) <= 16384);
	}
	CHECK(uffdb_planner_memory(planner) < 4 << 20);
	uffdb_planner_destroy(planner);
}

int main(void)
{
	lives_through_random_changes(1000, 1000, 0);
	lives_through_random_changes(10, 1000, 0);
	lives_through_random_changes(10, 1000, 3);
	lives_through_random_changes(1, 1000, 0);
	lives_through_random_changes(1000, 20, 0);
	lives_through_random_changes(30, 7, 2);
	lives_through_random_changes(30, 2, 2);
	absorbs_populated_gaps_first_and_then_the_shortest();
	opens_gaps_again_when_there_is_room();
	plans_for_sixteen_tebibytes();
	return 0;
}
