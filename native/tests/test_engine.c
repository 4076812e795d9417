// SPDX-License-Identifier: GPL-2.0-or-later
/* The engine on this process's own memory, touched by two threads at once. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>

#include "engine_setup.h"

#define ROUNDS 8

struct toucher {
	struct setup *setup;
	uint64_t offset; /* of the bytes of a page that are this thread's */
	bool write;
};

static void *touch_all(void *argument)
{
	struct toucher *toucher = argument;

	for (uint64_t page = 0; page < PAGES; page++) {
		volatile uint8_t *byte = toucher->setup->memory + page * PAGE + toucher->offset;

		if (toucher->write)
			*byte = (uint8_t)(page + toucher->offset);
		else
			CHECK(*byte == 0);
	}
	return NULL;
}

static void touch_from_two_threads(struct setup *setup, bool write)
{
	struct toucher touchers[2] = {{setup, 1, write}, {setup, 2, write}};
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		CHECK(!pthread_create(&threads[i], NULL, touch_all, &touchers[i]));
	for (int i = 0; i < 2; i++)
		CHECK(!pthread_join(threads[i], NULL));
}

static uint64_t drain_all(struct setup *setup, uint64_t *dropped)
{
	static struct uffdb_event events[1024];
	struct uffdb_stats stats;
	uint64_t total = 0;
	size_t got;

	while ((got = uffdb_engine_drain(setup->engine, events, 1024)))
		total += got;
	uffdb_engine_stats(setup->engine, &stats);
	*dropped = stats.events_dropped;
	return total;
}

/* Reads give zeros and stay ballooned, writes are granted once, and no byte is lost. */
static void answers_every_touch_of_two_threads(void)
{
	struct uffdb_stats stats;
	struct setup setup;
	uint64_t events = 0, dropped;

	set_up(&setup, UFFDB_RUNG_ZERO_READ, UFFDB_RUNG_OBSERVE);
	for (int round = 0; round < ROUNDS; round++) {
		memset(setup.memory, 0xff, SIZE);
		inflate(&setup, 0, SIZE);
		touch_from_two_threads(&setup, false);
		CHECK(uffdb_ledger_pages(setup.ledger) == PAGES);
		touch_from_two_threads(&setup, true);
		CHECK(uffdb_ledger_pages(setup.ledger) == 0);
		for (uint64_t page = 0; page < PAGES; page++)
			for (uint64_t offset = 1; offset <= 2; offset++)
				CHECK(setup.memory[page * PAGE + offset] ==
				      (uint8_t)(page + offset));
		CHECK(uffdb_engine_deflate(setup.engine, address(&setup), SIZE) == 0);
		events += drain_all(&setup, &dropped);
	}
	uffdb_engine_stats(setup.engine, &stats);
	CHECK(stats.actions[UFFDB_ACTION_GRANT] == ROUNDS * PAGES);
	CHECK(stats.actions[UFFDB_ACTION_ZERO_READ] >= ROUNDS * PAGES);
	CHECK(stats.violations ==
	      stats.actions[UFFDB_ACTION_GRANT] + stats.actions[UFFDB_ACTION_ZERO_READ]);
	CHECK(events + dropped == stats.violations);
	CHECK(stats.windows == 0 && stats.armed_bytes == 0);
	CHECK(uffdb_engine_latency(setup.engine, 500) > 0);
	tear_down(&setup);
}

static void arms_only_blocks_that_hold_ballooned_pages(void)
{
	struct uffdb_stats stats;
	struct setup setup;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	inflate(&setup, 0, PAGE);
	inflate(&setup, 2 * HUGE, PAGE);
	uffdb_engine_stats(setup.engine, &stats);
	CHECK(stats.windows == 2 && stats.armed_bytes == 2 * HUGE);
	inflate(&setup, HUGE, PAGE);
	uffdb_engine_stats(setup.engine, &stats);
	CHECK(stats.windows == 1 && stats.armed_bytes == 3 * HUGE);
	setup.memory[8 * PAGE] = 1; /* in a window, never ballooned */
	uffdb_engine_stats(setup.engine, &stats);
	CHECK(stats.ordinary == 1 && stats.violations == 0);
	CHECK(uffdb_engine_deflate(setup.engine, address(&setup) + HUGE, HUGE) == 1);
	uffdb_engine_stats(setup.engine, &stats);
	CHECK(stats.windows == 2 && stats.armed_bytes == 2 * HUGE);
	CHECK(uffdb_engine_inflate(setup.engine, address(&setup) + SIZE, PAGE) == -ENOENT);
	tear_down(&setup);
}

static void check_nothing_changed(struct setup *setup, uint64_t pages)
{
	CHECK(stats_of(setup).windows == 1 && stats_of(setup).armed_bytes == HUGE);
	CHECK(uffdb_ledger_pages(setup->ledger) == pages);
}

static void a_range_that_is_refused_leaves_nothing_armed(void)
{
	struct setup setup;
	uint64_t start;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	start = address(&setup);
	inflate(&setup, 0, 4 * PAGE);
	CHECK(uffdb_engine_inflate(setup.engine, start + HUGE + 1, PAGE) == -EINVAL);
	CHECK(uffdb_engine_inflate(setup.engine, start + HUGE, PAGE - 1) == -EINVAL);
	CHECK(uffdb_engine_inflate(setup.engine, start + HUGE, 0) == -ENOENT);
	CHECK(uffdb_engine_inflate(setup.engine, start + HUGE, SIZE) == -ENOENT);
	CHECK(uffdb_engine_inflate(setup.engine, start + HUGE, UINT64_MAX - HUGE) == -ENOENT);
	check_nothing_changed(&setup, 4);
	CHECK(uffdb_engine_deflate(setup.engine, start + 1, PAGE) == -EINVAL);
	CHECK(uffdb_engine_deflate(setup.engine, start, PAGE + 1) == -EINVAL);
	CHECK(uffdb_engine_deflate(setup.engine, start, 0) == -ENOENT);
	CHECK(uffdb_engine_deflate(setup.engine, start, 2 * SIZE) == -ENOENT);
	check_nothing_changed(&setup, 4);
	CHECK(uffdb_engine_deflate(setup.engine, start, 4 * PAGE) == 4);
	CHECK(stats_of(&setup).windows == 0);
	tear_down(&setup);
}

static void a_part_of_a_huge_page_is_refused(void)
{
	struct setup setup;

	open_fds(&setup, WANTED);
	setup.memory = map_aligned(SIZE);
	make_engine_over(&setup, SIZE, UFFDB_BLOCK_HUGETLB, (struct uffdb_engine_config){0});
	CHECK(uffdb_engine_inflate(setup.engine, address(&setup), PAGE) == -EINVAL);
	CHECK(uffdb_engine_inflate(setup.engine, address(&setup) + PAGE, HUGE) == -EINVAL);
	CHECK(uffdb_engine_deflate(setup.engine, address(&setup), PAGE) == -EINVAL);
	CHECK(stats_of(&setup).windows == 0 && uffdb_ledger_pages(setup.ledger) == 0);
	tear_down(&setup);
}

/* The eventfd is quiet until something is posted after an empty drain. */
static void wakes_its_reader_once(void)
{
	struct uffdb_event event;
	struct pollfd wait;
	struct setup setup;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	wait = (struct pollfd){.fd = uffdb_engine_event_fd(setup.engine), .events = POLLIN};
	CHECK(uffdb_engine_drain(setup.engine, &event, 1) == 0);
	CHECK(poll(&wait, 1, 0) == 0);
	inflate(&setup, 0, PAGE);
	setup.memory[0] = 1;
	CHECK(poll(&wait, 1, -1) == 1);
	CHECK(uffdb_engine_drain(setup.engine, &event, 1) == 1);
	CHECK(event.hva == address(&setup) && event.size == PAGE && event.write);
	CHECK(event.verdict == UFFDB_VIOLATION && event.action == UFFDB_ACTION_GRANT);
	CHECK(event.tid == (uint32_t)getpid());
	CHECK(uffdb_engine_drain(setup.engine, &event, 1) == 0);
	CHECK(poll(&wait, 1, 0) == 0);
	tear_down(&setup);
}

static void a_thread_that_is_no_vcpu_reads_zeros_and_violates_nothing(void)
{
	int32_t somebody_else = 1;
	struct uffdb_stats stats;
	struct setup setup;

	set_up(&setup, UFFDB_RUNG_ZERO_READ, UFFDB_RUNG_OBSERVE);
	CHECK(!uffdb_engine_set_vcpus(setup.engine, &somebody_else, 1));
	inflate(&setup, 0, PAGE);
	CHECK(((volatile uint8_t *)setup.memory)[7] == 0);
	uffdb_engine_stats(setup.engine, &stats);
	CHECK(stats.violations == 0);
	CHECK(uffdb_ledger_pages(setup.ledger) == 1);
	((volatile uint8_t *)setup.memory)[7] = 1; /* a device writes on behalf of the guest */
	CHECK(uffdb_ledger_pages(setup.ledger) == 0);
	tear_down(&setup);
}

static void starts_and_stops_again_and_again(void)
{
	struct setup setup;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	for (int i = 0; i < 100; i++) {
		uffdb_engine_stop(setup.engine);
		CHECK(!uffdb_engine_start(setup.engine));
		CHECK(uffdb_engine_start(setup.engine) == -EALREADY);
	}
	tear_down(&setup);
}

int main(void)
{
	answers_every_touch_of_two_threads();
	arms_only_blocks_that_hold_ballooned_pages();
	a_range_that_is_refused_leaves_nothing_armed();
	a_part_of_a_huge_page_is_refused();
	wakes_its_reader_once();
	a_thread_that_is_no_vcpu_reads_zeros_and_violates_nothing();
	starts_and_stops_again_and_again();
	return 0;
}
