// SPDX-License-Identifier: GPL-2.0-or-later
/* What each rung does about a violation, and what lets a held thread go on. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "engine_setup.h"
#include "writer.h"

static void set_up_rungs(struct setup *setup, struct uffdb_rung first, struct uffdb_rung second)
{
	set_up_with(setup, (struct uffdb_engine_config){
				   .nr_rungs = second.kind ? 2 : 1,
				   .rungs = {first, second},
			   });
}

static void freeze_holds_one_thread_until_it_is_released(void)
{
	struct writer frozen, other;
	struct uffdb_parked held;
	struct setup setup;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE},
		     (struct uffdb_rung){0});
	inflate(&setup, 0, HUGE);
	start_writing(&frozen, &setup, 0);
	wait_until_parked(&setup, 1);
	start_writing(&other, &setup, HUGE); /* not ballooned */
	finish(&other);
	CHECK(!frozen.done);
	CHECK(uffdb_engine_parked(setup.engine, &held, 1) == 1);
	CHECK(held.tid == frozen.tid && held.hva == address(&setup) && held.write);
	CHECK(held.action == UFFDB_ACTION_FREEZE && !held.deadline_ns);
	CHECK(uffdb_engine_release(setup.engine, held.tid + 1) == 0);
	CHECK(uffdb_engine_release(setup.engine, held.tid) == 1);
	finish(&frozen);
	CHECK(stats_of(&setup).violations == 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_RELEASE] == 1);
	CHECK(stats_of(&setup).parked == 0);
	CHECK(uffdb_ledger_pages(setup.ledger) == HUGE / PAGE - 1);
	tear_down(&setup);
}

static void freeze_ends_by_itself_in_the_next_rung(void)
{
	struct writer writer;
	struct setup setup;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE, .hold_ns = 20000000},
		     (struct uffdb_rung){.kind = UFFDB_RUNG_OBSERVE});
	inflate(&setup, 0, HUGE);
	start_writing(&writer, &setup, 0);
	finish(&writer);
	CHECK(stats_of(&setup).violations == 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_FREEZE] == 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] == 1);
	tear_down(&setup);
}

static void a_hold_ends_by_itself_though_the_loop_was_stopped_meanwhile(void)
{
	struct writer writer;
	struct setup setup;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE, .hold_ns = 200000000},
		     (struct uffdb_rung){.kind = UFFDB_RUNG_OBSERVE});
	inflate(&setup, 0, HUGE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	uffdb_engine_stop(setup.engine);
	CHECK(!uffdb_engine_start(setup.engine));
	finish(&writer);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] == 1);
	tear_down(&setup);
}

static void two_frozen_at_one_page_go_on_together(void)
{
	struct writer writers[2];
	struct setup setup;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE},
		     (struct uffdb_rung){0});
	inflate(&setup, 0, HUGE);
	start_writing(&writers[0], &setup, 1);
	start_writing(&writers[1], &setup, 2);
	wait_until_parked(&setup, 2);
	CHECK(uffdb_engine_release(setup.engine, 0) == 1);
	finish(&writers[0]);
	finish(&writers[1]);
	CHECK(stats_of(&setup).violations == 2 && stats_of(&setup).parked == 0);
	tear_down(&setup);
}

static void a_reader_beside_a_frozen_writer_wakes_it_and_counts_it_once(void)
{
	struct writer writer;
	struct setup setup;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_ZERO_READ},
		     (struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE});
	inflate(&setup, 0, HUGE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	CHECK(*(volatile uint8_t *)(setup.memory + 8) == 0);
	poll(NULL, 0, 50); /* for the writer to fault again, if it does */
	CHECK(!writer.done);
	CHECK(stats_of(&setup).violations == 2); /* one write, one read */
	CHECK(stats_of(&setup).parked == 1);
	CHECK(uffdb_engine_release(setup.engine, 0) == 1);
	finish(&writer);
	tear_down(&setup);
}

static void deflate_and_reset_let_the_frozen_go(void)
{
	struct writer writer;
	struct setup setup;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE},
		     (struct uffdb_rung){0});
	inflate(&setup, 0, HUGE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	CHECK(uffdb_engine_deflate(setup.engine, address(&setup), PAGE) == 1);
	finish(&writer);
	start_writing(&writer, &setup, PAGE);
	wait_until_parked(&setup, 1);
	CHECK(!uffdb_engine_reset(setup.engine, 0));
	finish(&writer);
	CHECK(uffdb_ledger_pages(setup.ledger) == 0 && stats_of(&setup).windows == 0);
	tear_down(&setup);
}

static void the_end_of_the_engine_lets_the_frozen_go(void)
{
	struct writer writer;
	struct setup setup;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_FREEZE},
		     (struct uffdb_rung){0});
	inflate(&setup, 0, HUGE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	tear_down(&setup);
	finish(&writer);
}

static void throttle_grants_its_burst_and_then_takes_the_next_rung(void)
{
	struct setup setup;

	set_up_rungs(&setup,
		     (struct uffdb_rung){.kind = UFFDB_RUNG_THROTTLE,
					 .bytes_per_s = 1,
					 .burst_bytes = 4 * PAGE},
		     (struct uffdb_rung){.kind = UFFDB_RUNG_OBSERVE});
	inflate(&setup, 0, HUGE);
	for (uint64_t page = 0; page < 10; page++)
		setup.memory[page * PAGE] = 1;
	CHECK(stats_of(&setup).violations == 10);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_THROTTLE] == 4);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] == 6);
	tear_down(&setup);
}

static void throttle_as_the_last_rung_makes_the_thread_wait(void)
{
	uint64_t rate = 2000 * PAGE; /* a second: 20 pages in 10 ms */
	struct timespec begin, end;
	struct setup setup;

	set_up_rungs(&setup,
		     (struct uffdb_rung){
			     .kind = UFFDB_RUNG_THROTTLE, .bytes_per_s = rate, .burst_bytes = PAGE},
		     (struct uffdb_rung){0});
	inflate(&setup, 0, HUGE);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (uint64_t page = 0; page < 21; page++)
		setup.memory[page * PAGE] = 1;
	clock_gettime(CLOCK_MONOTONIC, &end);
	CHECK((end.tv_sec - begin.tv_sec) * 1000000000 + end.tv_nsec - begin.tv_nsec >= 10000000);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_THROTTLE] == 21);
	tear_down(&setup);
}

static void what_waits_for_the_monitor_is_resolved_by_its_id(void)
{
	struct uffdb_parked held;
	struct writer writer;
	struct setup setup;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_PAUSE}, (struct uffdb_rung){0});
	inflate(&setup, 0, HUGE);
	start_writing(&writer, &setup, 0);
	wait_until_parked(&setup, 1);
	CHECK(uffdb_engine_parked(setup.engine, &held, 1) == 1);
	CHECK(held.action == UFFDB_ACTION_PAUSE && held.deadline_ns);
	CHECK(uffdb_engine_release(setup.engine, 0) == 0); /* it is not frozen */
	CHECK(uffdb_engine_resolve(setup.engine, held.id + 1, UFFDB_RESOLVE_GRANT) == -ENOENT);
	CHECK(uffdb_engine_resolve(setup.engine, held.id, UFFDB_RESOLVE_GRANT) == 0);
	finish(&writer);
	tear_down(&setup);
}

static void cap_grants_down_to_its_floor(void)
{
	struct setup setup;

	set_up_with(&setup,
		    (struct uffdb_engine_config){
			    .terms = {.kind = UFFDB_CONTRACT_CAP, .floor_bytes = HUGE - 3 * PAGE},
			    .nr_rungs = 1,
			    .around_bytes = HUGE,
			    .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
		    });
	inflate(&setup, 0, HUGE);
	for (uint64_t page = 0; page < 5; page++)
		setup.memory[page * PAGE] = 1;
	CHECK(stats_of(&setup).granted == 3 && stats_of(&setup).violations == 2);
	/* Around a granted page nothing was given that is in the balloon. */
	CHECK(uffdb_ledger_pages(setup.ledger) == HUGE / PAGE - 5);
	CHECK(stats_of(&setup).around_pages == 0);
	tear_down(&setup);
}

static void fills_around_owned_memory_up_to_the_balloon(void)
{
	uint64_t filled = 0;
	struct setup setup;

	set_up_with(&setup, (struct uffdb_engine_config){
				    .nr_rungs = 1,
				    .around_bytes = HUGE,
				    .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
			    });
	inflate(&setup, 100 * PAGE, PAGE);
	for (uint64_t page = 0; page < 100; page++)
		setup.memory[page * PAGE] = (uint8_t)page;
	filled = stats_of(&setup).ordinary + stats_of(&setup).around_pages;
	CHECK(filled == 100 && stats_of(&setup).ordinary < 10);
	CHECK(stats_of(&setup).violations == 0);
	CHECK(uffdb_ledger_pages(setup.ledger) == 1);
	setup.memory[100 * PAGE] = 1; /* still absent: it is trapped */
	CHECK(stats_of(&setup).violations == 1);
	for (uint64_t page = 0; page < 100; page++)
		CHECK(setup.memory[page * PAGE] == (uint8_t)page);
	tear_down(&setup);
}

static void a_window_whose_last_page_was_granted_is_let_go(void)
{
	struct setup setup;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	inflate(&setup, 0, PAGE);
	inflate(&setup, 2 * HUGE, 2 * PAGE);
	setup.memory[0] = 1;
	setup.memory[2 * HUGE] = 1;
	CHECK(stats_of(&setup).windows == 2);
	CHECK(uffdb_engine_tidy(setup.engine) == 1);
	CHECK(stats_of(&setup).windows == 1);
	CHECK(uffdb_engine_tidy(setup.engine) == 0);
	tear_down(&setup);
}

struct racer {
	struct setup *setup;
	pthread_barrier_t *barrier;
};

static void *read_each_page(void *argument)
{
	struct racer *racer = argument;

	for (uint64_t page = 0; page < PAGES; page++) {
		pthread_barrier_wait(racer->barrier);
		(void)*(volatile uint8_t *)(racer->setup->memory + page * PAGE);
	}
	return NULL;
}

/*
 * A write may come between the zero page and its protection. None goes unseen:
 * a page that holds memory of its own is not called ballooned.
 */
static void a_write_at_the_moment_of_a_read_is_found(void)
{
	struct setup setup;
	pthread_barrier_t barrier;
	struct racer racer = {&setup, &barrier};
	uint64_t slipped = 0;

	set_up_rungs(&setup, (struct uffdb_rung){.kind = UFFDB_RUNG_ZERO_READ},
		     (struct uffdb_rung){.kind = UFFDB_RUNG_OBSERVE});
	pthread_barrier_init(&barrier, NULL, 2);
	for (int round = 0; round < 4; round++) {
		pthread_t reader;

		inflate(&setup, 0, SIZE);
		CHECK(!pthread_create(&reader, NULL, read_each_page, &racer));
		for (uint64_t page = 0; page < PAGES; page++) {
			pthread_barrier_wait(&barrier);
			setup.memory[page * PAGE + 8] = 7;
		}
		CHECK(!pthread_join(reader, NULL));
		CHECK(uffdb_ledger_pages(setup.ledger) == 0);
		for (uint64_t page = 0; page < PAGES; page++)
			CHECK(setup.memory[page * PAGE + 8] == 7);
		CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] ==
		      (uint64_t)(round + 1) * PAGES);
		slipped = stats_of(&setup).slipped_writes;
		while (uffdb_engine_drain(setup.engine, &(struct uffdb_event){0}, 1))
			;
	}
	printf("slipped writes, all found: %lu of %llu\n", slipped, 4 * PAGES);
	pthread_barrier_destroy(&barrier);
	tear_down(&setup);
}

int main(void)
{
	a_write_at_the_moment_of_a_read_is_found();
	freeze_holds_one_thread_until_it_is_released();
	freeze_ends_by_itself_in_the_next_rung();
	a_hold_ends_by_itself_though_the_loop_was_stopped_meanwhile();
	two_frozen_at_one_page_go_on_together();
	a_reader_beside_a_frozen_writer_wakes_it_and_counts_it_once();
	deflate_and_reset_let_the_frozen_go();
	the_end_of_the_engine_lets_the_frozen_go();
	throttle_grants_its_burst_and_then_takes_the_next_rung();
	throttle_as_the_last_rung_makes_the_thread_wait();
	what_waits_for_the_monitor_is_resolved_by_its_id();
	cap_grants_down_to_its_floor();
	fills_around_owned_memory_up_to_the_balloon();
	a_window_whose_last_page_was_granted_is_let_go();
	return 0;
}
