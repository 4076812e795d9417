// SPDX-License-Identifier: GPL-2.0-or-later
/* What the ladder decides about a violation: no userfaultfd, no thread, and time is what is said.
 */
#include <errno.h>
#include <string.h>

#include "../src/clock.h"
#include "../src/ladder.h"
#include "../src/pages.h"
#include "check.h"

#define NOW (5 * UFFDB_NS_PER_S)

static const struct uffdb_block ANONYMOUS = {.hva = UFFDB_HUGE, .size = UFFDB_HUGE};

static struct uffdb_touch write_of(uint64_t size)
{
	return (struct uffdb_touch){
		.hva = ANONYMOUS.hva,
		.size = size,
		.write = true,
		.ballooned = true,
		.traps_after_zeros = true,
		.block = &ANONYMOUS,
	};
}

static struct uffdb_touch read_of(uint64_t size)
{
	struct uffdb_touch touch = write_of(size);

	touch.write = false;
	return touch;
}

static struct uffdb_ladder ladder_of(struct uffdb_rung first, struct uffdb_rung second)
{
	const struct uffdb_rung rungs[] = {first, second};
	struct uffdb_ladder ladder;

	CHECK(!uffdb_ladder_init(&ladder, rungs, second.kind ? 2 : 1));
	return ladder;
}

static void check(struct uffdb_decision decision, enum uffdb_outcome outcome, uint8_t action,
		  uint32_t rung, uint64_t deadline_ns)
{
	CHECK(decision.outcome == outcome && decision.action == action);
	CHECK(decision.rung == rung && decision.deadline_ns == deadline_ns);
}

static void a_ladder_that_makes_no_sense_is_refused(void)
{
	struct uffdb_rung rungs[UFFDB_MAX_RUNGS + 1] = {{.kind = UFFDB_RUNG_THROTTLE}};
	struct uffdb_ladder ladder;

	CHECK(uffdb_ladder_init(&ladder, rungs, 1) == -EINVAL);
	rungs[0].bytes_per_s = 1;
	CHECK(!uffdb_ladder_init(&ladder, rungs, UFFDB_MAX_RUNGS));
	CHECK(uffdb_ladder_init(&ladder, rungs, UFFDB_MAX_RUNGS + 1) == -EINVAL);
}

static void zeros_are_for_reads_of_what_can_be_trapped_after_them(void)
{
	struct uffdb_ladder ladder = ladder_of((struct uffdb_rung){.kind = UFFDB_RUNG_ZERO_READ},
					       (struct uffdb_rung){.kind = UFFDB_RUNG_KILL});
	struct uffdb_touch touch = read_of(UFFDB_PAGE);

	check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_ZERO_READ,
	      UFFDB_ACTION_ZERO_READ, 0, 0);
	touch.minor = true; /* another process has filled it */
	check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_KILL, UFFDB_ACTION_KILL,
	      1, 0);
	touch = read_of(UFFDB_PAGE);
	touch.traps_after_zeros = false;
	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, NOW).outcome == UFFDB_OUTCOME_KILL);
	touch = read_of(UFFDB_PAGE);
	touch.protected = true;
	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, NOW).outcome == UFFDB_OUTCOME_KILL);
	touch = write_of(UFFDB_PAGE);
	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, NOW).outcome == UFFDB_OUTCOME_KILL);
}

static void what_cannot_be_done_goes_to_the_next_rung_and_is_granted_in_the_end(void)
{
	struct uffdb_ladder ladder = ladder_of((struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE},
					       (struct uffdb_rung){.kind = UFFDB_RUNG_PAUSE});
	struct uffdb_touch touch = write_of(UFFDB_PAGE);

	check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_HOLD, UFFDB_ACTION_FREEZE,
	      0, 0);
	check(uffdb_ladder_decide(&ladder, &touch, 1, NOW), UFFDB_OUTCOME_HOLD, UFFDB_ACTION_PAUSE,
	      1, NOW + 10 * UFFDB_NS_PER_S);
	check(uffdb_ladder_decide(&ladder, &touch, 2, NOW), UFFDB_OUTCOME_GRANT, UFFDB_ACTION_GRANT,
	      2, 0);
	ladder.nr_rungs = 0;
	check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_GRANT, UFFDB_ACTION_GRANT,
	      0, 0);
}

static void a_freeze_lasts_as_long_as_it_says_and_holds_nobody_who_went_on(void)
{
	struct uffdb_ladder ladder =
		ladder_of((struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE, .hold_ns = 7},
			  (struct uffdb_rung){.kind = UFFDB_RUNG_OBSERVE});
	struct uffdb_touch touch = write_of(UFFDB_PAGE);

	check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_HOLD, UFFDB_ACTION_FREEZE,
	      0, NOW + 7);
	touch.late = true;
	check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_GRANT, UFFDB_ACTION_GRANT,
	      1, 0);
}

static void only_an_absent_page_is_poisoned_at_once(void)
{
	struct uffdb_ladder ladder =
		ladder_of((struct uffdb_rung){.kind = UFFDB_RUNG_POISON}, (struct uffdb_rung){0});
	struct uffdb_touch touch = write_of(UFFDB_PAGE);

	check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_POISON,
	      UFFDB_ACTION_POISON, 0, 0);
	touch.protected = true;
	check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_HOLD, UFFDB_ACTION_POISON,
	      0, NOW + 10 * UFFDB_NS_PER_S);
}

static const struct uffdb_rung SLOW = {
	.kind = UFFDB_RUNG_THROTTLE,
	.bytes_per_s = 4 * UFFDB_PAGE,
	.burst_bytes = 2 * UFFDB_PAGE,
};

static void a_throttle_grants_its_burst_and_then_what_time_gives(void)
{
	struct uffdb_ladder ladder = ladder_of(SLOW, (struct uffdb_rung){.kind = UFFDB_RUNG_KILL});
	struct uffdb_touch touch = write_of(UFFDB_PAGE);

	for (int i = 0; i < 2; i++)
		check(uffdb_ladder_decide(&ladder, &touch, 0, NOW), UFFDB_OUTCOME_GRANT,
		      UFFDB_ACTION_THROTTLE, 0, 0);
	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, NOW).outcome == UFFDB_OUTCOME_KILL);
	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, NOW + UFFDB_NS_PER_S / 4).outcome ==
	      UFFDB_OUTCOME_GRANT);
	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, NOW + UFFDB_NS_PER_S / 4).outcome ==
	      UFFDB_OUTCOME_KILL);
}

static void a_throttle_at_the_end_makes_wait_until_there_is_a_token(void)
{
	struct uffdb_ladder ladder = ladder_of(SLOW, (struct uffdb_rung){0});
	struct uffdb_touch touch = write_of(UFFDB_PAGE);
	struct uffdb_decision decision;

	uffdb_ladder_decide(&ladder, &touch, 0, NOW);
	uffdb_ladder_decide(&ladder, &touch, 0, NOW);
	decision = uffdb_ladder_decide(&ladder, &touch, 0, NOW);
	check(decision, UFFDB_OUTCOME_HOLD, UFFDB_ACTION_THROTTLE, 0, NOW + UFFDB_NS_PER_S / 4 + 1);
	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, decision.deadline_ns).outcome ==
	      UFFDB_OUTCOME_GRANT);
	touch.late = true; /* nobody waits: there is none to be held */
	check(uffdb_ladder_decide(&ladder, &touch, 0, decision.deadline_ns), UFFDB_OUTCOME_GRANT,
	      UFFDB_ACTION_GRANT, 1, 0);
}

static void a_huge_page_passes_a_burst_that_is_smaller(void)
{
	struct uffdb_ladder ladder = ladder_of(SLOW, (struct uffdb_rung){0});
	struct uffdb_touch touch = write_of(UFFDB_HUGE);

	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, NOW).outcome == UFFDB_OUTCOME_GRANT);
	CHECK(uffdb_ladder_decide(&ladder, &touch, 0, NOW).outcome == UFFDB_OUTCOME_HOLD);
}

int main(void)
{
	a_ladder_that_makes_no_sense_is_refused();
	zeros_are_for_reads_of_what_can_be_trapped_after_them();
	what_cannot_be_done_goes_to_the_next_rung_and_is_granted_in_the_end();
	a_freeze_lasts_as_long_as_it_says_and_holds_nobody_who_went_on();
	only_an_absent_page_is_poisoned_at_once();
	a_throttle_grants_its_burst_and_then_what_time_gives();
	a_throttle_at_the_end_makes_wait_until_there_is_a_token();
	a_huge_page_passes_a_burst_that_is_smaller();
	return 0;
}
