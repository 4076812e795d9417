// SPDX-License-Identifier: GPL-2.0-or-later
/* Another ladder, other terms, under a running engine: what is touched next, and what is held. */
#include <errno.h>

#include "engine_setup.h"
#include "writer.h"

#define FOR_EVER_NS 3600000000000ull

static const struct uffdb_rung OBSERVE = {.kind = UFFDB_RUNG_OBSERVE};
static const struct uffdb_rung FREEZE = {.kind = UFFDB_RUNG_FREEZE};

static void set_up_balloon(struct setup *setup, uint32_t rung)
{
	set_up(setup, rung, 0);
	inflate(setup, 0, HUGE);
}

static int set_rung(struct setup *setup, struct uffdb_rung rung)
{
	return uffdb_engine_set_policy(setup->engine, &rung, 1, NULL);
}

static int set_terms(struct setup *setup, struct uffdb_terms terms)
{
	return uffdb_engine_set_policy(setup->engine, NULL, 0, &terms);
}

static struct uffdb_parked only_held(struct setup *setup)
{
	struct uffdb_parked held[2];

	CHECK(uffdb_engine_parked(setup->engine, held, 2) == 1);
	return held[0];
}

static void the_next_touch_is_answered_by_the_new_ladder(void)
{
	struct writer writer;
	struct setup setup;

	set_up_balloon(&setup, UFFDB_RUNG_OBSERVE);
	setup.memory[0] = 1;
	CHECK(set_rung(&setup, FREEZE) == 0);
	start_writing(&writer, &setup, PAGE);
	wait_until_parked(&setup, 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] ==
	      1); /* of before: it is still counted */
	CHECK(uffdb_engine_release(setup.engine, 0) == 1);
	finish(&writer);
	tear_down(&setup);
}

static void what_the_new_ladder_does_not_hold_goes_on_and_is_counted_once(void)
{
	struct writer writer;
	struct setup setup;

	set_up_balloon(&setup, UFFDB_RUNG_FREEZE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	CHECK(set_rung(&setup, OBSERVE) == 1);
	finish(&writer);
	CHECK(stats_of(&setup).violations == 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_FREEZE] == 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] == 1);
	tear_down(&setup);
}

static void what_stays_frozen_is_not_told_again_and_has_its_time_from_when_it_was_touched(void)
{
	struct uffdb_parked before, after;
	struct writer writer;
	struct setup setup;

	set_up_balloon(&setup, UFFDB_RUNG_FREEZE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	before = only_held(&setup);
	CHECK(set_rung(&setup, (struct uffdb_rung){UFFDB_RUNG_FREEZE, .hold_ns = FOR_EVER_NS}) ==
	      0);
	after = only_held(&setup);
	CHECK(after.since_ns == before.since_ns);
	CHECK(after.deadline_ns == before.since_ns + FOR_EVER_NS);
	CHECK(set_rung(&setup, FREEZE) == 0);
	CHECK(!only_held(&setup).deadline_ns);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_FREEZE] == 1);
	CHECK(!writer.done);
	/* It has been held for longer than that. */
	CHECK(set_rung(&setup, (struct uffdb_rung){UFFDB_RUNG_FREEZE, .hold_ns = 1}) >= 0);
	finish(&writer);
	tear_down(&setup);
}

static void all_that_are_frozen_are_judged_anew(void)
{
	struct writer writers[3];
	struct setup setup;

	set_up_balloon(&setup, UFFDB_RUNG_FREEZE);
	for (uint64_t i = 0; i < 3; i++)
		start_writing(&writers[i], &setup, i * PAGE);
	wait_until_parked(&setup, 3);
	CHECK(set_rung(&setup, FREEZE) == 0);
	CHECK(stats_of(&setup).parked == 3);
	CHECK(set_rung(&setup, OBSERVE) == 3);
	for (uint64_t i = 0; i < 3; i++)
		finish(&writers[i]);
	CHECK(stats_of(&setup).violations == 3);
	tear_down(&setup);
}

static void who_waits_for_a_token_gets_it_of_the_new_bucket(void)
{
	struct uffdb_rung slow = {
		.kind = UFFDB_RUNG_THROTTLE, .bytes_per_s = 1, .burst_bytes = PAGE};
	struct writer writer;
	struct setup setup;

	set_up_with(&setup, (struct uffdb_engine_config){.nr_rungs = 1, .rungs = {slow}});
	inflate(&setup, 0, HUGE);
	setup.memory[0] = 1; /* the burst */
	start_writing(&writer, &setup, PAGE);
	wait_until_parked(&setup, 1);
	CHECK(set_rung(&setup, slow) == 1);
	finish(&writer);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_THROTTLE] == 2);
	tear_down(&setup);
}

static void who_waits_for_the_monitor_goes_on_waiting(void)
{
	struct writer writer;
	struct setup setup;

	set_up_balloon(&setup, UFFDB_RUNG_PAUSE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	CHECK(set_rung(&setup, OBSERVE) == 0);
	CHECK(!uffdb_engine_resolve(setup.engine, only_held(&setup).id, UFFDB_RESOLVE_GRANT));
	finish(&writer);
	tear_down(&setup);
}

static void what_the_new_terms_grant_goes_on(void)
{
	struct writer writer;
	struct setup setup;

	set_up_balloon(&setup, UFFDB_RUNG_FREEZE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	CHECK(set_terms(&setup, (struct uffdb_terms){.kind = UFFDB_CONTRACT_CAP,
						     .floor_bytes = HUGE}) == 0);
	CHECK(stats_of(&setup).parked == 1);
	CHECK(set_terms(&setup, (struct uffdb_terms){.kind = UFFDB_CONTRACT_CAP,
						     .floor_bytes = HUGE - 2 * PAGE}) == 1);
	finish(&writer);
	setup.memory[PAGE] = 1; /* the last above the floor */
	CHECK(stats_of(&setup).granted == 2 && stats_of(&setup).violations == 1);
	CHECK(set_terms(&setup, (struct uffdb_terms){.kind = UFFDB_CONTRACT_TOLD}) == 0);
	start_writing(&writer, &setup, 2 * PAGE);
	wait_until_parked(&setup, 1);
	CHECK(uffdb_engine_release(setup.engine, 0) == 1);
	finish(&writer);
	tear_down(&setup);
}

static void other_terms_let_nobody_go_whom_the_ladder_froze(void)
{
	struct writer writer;
	struct setup setup;

	set_up_with(&setup, (struct uffdb_engine_config){
				    .nr_rungs = 2,
				    .rungs = {{.kind = UFFDB_RUNG_THROTTLE,
					       .bytes_per_s = PAGE,
					       .burst_bytes = PAGE},
					      FREEZE},
			    });
	inflate(&setup, 0, HUGE);
	setup.memory[0] = 1; /* the burst */
	start_writing(&writer, &setup, PAGE);
	wait_until_parked(&setup, 1);
	poll(NULL, 0, 1100); /* for another token, which is for the next touch */
	CHECK(set_terms(&setup, (struct uffdb_terms){.kind = UFFDB_CONTRACT_CAP,
						     .floor_bytes = SIZE}) == 0);
	CHECK(only_held(&setup).action == UFFDB_ACTION_FREEZE && !writer.done);
	CHECK(uffdb_engine_release(setup.engine, 0) == 1);
	finish(&writer);
	tear_down(&setup);
}

static void a_floor_above_the_balloon_takes_nothing(void)
{
	struct setup setup;

	set_up_balloon(&setup, UFFDB_RUNG_OBSERVE);
	CHECK(set_terms(&setup, (struct uffdb_terms){.kind = UFFDB_CONTRACT_CAP,
						     .floor_bytes = SIZE}) == 0);
	CHECK(uffdb_ledger_pages(setup.ledger) == HUGE / PAGE);
	setup.memory[0] = 1;
	CHECK(stats_of(&setup).violations == 1 && stats_of(&setup).granted == 0);
	tear_down(&setup);
}

static void a_boot_grace_ends_with_its_limits(void)
{
	struct uffdb_terms terms = {
		.kind = UFFDB_CONTRACT_CAP, .floor_bytes = SIZE, .grace_bytes = HUGE};
	struct uffdb_contract contract;
	struct setup setup;

	set_up_with(&setup, (struct uffdb_engine_config){
				    .terms = terms, .nr_rungs = 1, .rungs = {OBSERVE}});
	CHECK(!uffdb_engine_reset(setup.engine, 0));
	terms.floor_bytes = HUGE; /* no limit of the grace's */
	CHECK(set_terms(&setup, terms) == 0);
	uffdb_engine_contract(setup.engine, &contract);
	CHECK(contract.grace.runs && contract.terms.floor_bytes == HUGE);
	terms.grace_bytes = SIZE;
	CHECK(set_terms(&setup, terms) == 0);
	uffdb_engine_contract(setup.engine, &contract);
	CHECK(!contract.grace.runs);
	tear_down(&setup);
}

static void a_ladder_that_is_none_changes_nothing(void)
{
	const struct uffdb_terms cap = {.kind = UFFDB_CONTRACT_CAP};
	const struct uffdb_rung no_rate = {.kind = UFFDB_RUNG_THROTTLE};
	struct uffdb_contract contract;
	struct setup setup;

	set_up_balloon(&setup, UFFDB_RUNG_OBSERVE);
	CHECK(uffdb_engine_set_policy(setup.engine, &no_rate, 1, &cap) == -EINVAL);
	CHECK(uffdb_engine_set_policy(setup.engine, &no_rate, UFFDB_MAX_RUNGS + 1, &cap) ==
	      -EINVAL);
	uffdb_engine_contract(setup.engine, &contract);
	CHECK(contract.terms.kind == UFFDB_CONTRACT_TOLD);
	setup.memory[0] = 1;
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] == 1);
	tear_down(&setup);
}

int main(void)
{
	the_next_touch_is_answered_by_the_new_ladder();
	what_the_new_ladder_does_not_hold_goes_on_and_is_counted_once();
	what_stays_frozen_is_not_told_again_and_has_its_time_from_when_it_was_touched();
	all_that_are_frozen_are_judged_anew();
	who_waits_for_a_token_gets_it_of_the_new_bucket();
	who_waits_for_the_monitor_goes_on_waiting();
	what_the_new_terms_grant_goes_on();
	other_terms_let_nobody_go_whom_the_ladder_froze();
	a_floor_above_the_balloon_takes_nothing();
	a_boot_grace_ends_with_its_limits();
	a_ladder_that_is_none_changes_nothing();
	return 0;
}
