// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All at once: threads that touch, a balloon that gives up and takes back, and a manager that
 * inflates, deflates, resets and asks. For as many operations as it takes, and no longer: a machine
 * that is busy with something else may come to a thread late.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "engine_setup.h"

#ifdef __SANITIZE_THREAD__
#define ROUNDS 500 /* of the manager, at least; what it waits for takes longer there */
#else
#define ROUNDS 3000
#endif
#define TOUCHERS 3
#define OWNED	 (3 * HUGE / PAGE) /* the first page of what nobody ever gives up */
#define BALLOON	 (2 * HUGE / PAGE) /* and of what the guest's own balloon gives up */

struct toucher {
	struct setup *setup;
	pthread_t thread;
	uint64_t state;
	_Atomic uint64_t touches;
};

static _Atomic bool over;

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static _Atomic uint64_t *word_at(const struct setup *setup, uint64_t page)
{
	return (_Atomic uint64_t *)(setup->memory + page * PAGE);
}

/* Of a page that may be given up: nothing, or what was written to this very page. */
static void touch_any(struct setup *setup, uint64_t page, bool write)
{
	_Atomic uint64_t *word = word_at(setup, page);

	if (write) {
		atomic_store(word, page + 1);
	} else {
		uint64_t value = atomic_load(word);

		CHECK(value == 0 || value == page + 1);
	}
}

static void *touch_on_and_on(void *argument)
{
	struct toucher *toucher = argument;

	while (!over) {
		uint64_t chance = next_random(&toucher->state);
		uint64_t page = chance % PAGES;

		if (page < OWNED)
			touch_any(toucher->setup, page, chance >> 32 & 1);
		else
			CHECK(atomic_load(word_at(toucher->setup, page)) == ~page);
		toucher->touches++;
	}
	return NULL;
}

static void *play_the_balloon(void *argument)
{
	struct setup *setup = argument;
	uint64_t state = 77;

	while (!over) {
		uint64_t chance = next_random(&state);
		uint8_t *at = setup->memory + (BALLOON + chance % (HUGE / PAGE)) * PAGE;

		CHECK(!madvise(at, PAGE, MADV_DONTNEED));
		at = setup->memory + (BALLOON + (chance >> 20) % (HUGE / PAGE)) * PAGE;
		madvise(at, PAGE, MADV_WILLNEED);
	}
	return NULL;
}

static int tracepoint_id(int tracefs, const char *name)
{
	char path[128], text[16] = "";
	int fd;

	snprintf(path, sizeof(path), "events/syscalls/%s/id", name);
	fd = openat(tracefs, path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	return atoi(text);
}

/* NULL where the host has none: then the balloon's discards are nobody's. */
static struct uffdb_trace *make_trace(void)
{
	struct uffdb_trace_config config = {.pid = getpid(), .ring_bytes = 1 << 16};
	int tracefs = uffdb_tracefs_open();
	struct uffdb_trace *trace = NULL;

	if (tracefs < 0)
		return NULL;
	config.enter_madvise = tracepoint_id(tracefs, "sys_enter_madvise");
	config.enter_fallocate = tracepoint_id(tracefs, "sys_enter_fallocate");
	close(tracefs);
	return uffdb_trace_create(&config, &trace) ? NULL : trace;
}

static void manage(struct setup *setup, uint64_t *state)
{
	static struct uffdb_event events[256];
	struct uffdb_parked held[16];
	uint64_t chance = next_random(state), first = (chance >> 8) % BALLOON;
	uint64_t count = 1 + (chance >> 32) % 64;

	if (first + count > BALLOON)
		count = BALLOON - first;
	switch (chance % 8) {
	case 0:
	case 1:
	case 2:
		inflate(setup, first * PAGE, count * PAGE);
		break;
	case 3:
	case 4:
		CHECK(uffdb_engine_deflate(setup->engine, address(setup) + first * PAGE,
					   count * PAGE) >= 0);
		break;
	case 5:
		CHECK(uffdb_engine_follow(setup->engine) >= 0);
		CHECK(uffdb_engine_tidy(setup->engine) >= 0);
		break;
	case 6:
		if (uffdb_engine_parked(setup->engine, held, 16))
			uffdb_engine_release(setup->engine, held[0].tid);
		break;
	default:
		if (!(chance >> 40 & 15))
			CHECK(!uffdb_engine_reset(setup->engine, 0));
		break;
	}
	while (uffdb_engine_drain(setup->engine, events, 256))
		;
}

/* Has every thread done what the storm is made of? */
static bool is_a_storm(const struct setup *setup, const struct toucher *touchers)
{
	for (size_t i = 0; i < TOUCHERS; i++)
		if (!touchers[i].touches)
			return false;
	return stats_of(setup).violations;
}

static void storm(struct setup *setup)
{
	struct toucher touchers[TOUCHERS];
	uint64_t state = 20240229;
	pthread_t balloon;

	over = false;
	CHECK(!pthread_create(&balloon, NULL, play_the_balloon, setup));
	for (size_t i = 0; i < TOUCHERS; i++) {
		touchers[i] = (struct toucher){.setup = setup, .state = i + 1};
		CHECK(!pthread_create(&touchers[i].thread, NULL, touch_on_and_on, &touchers[i]));
	}
	for (int round = 0; round < ROUNDS || !is_a_storm(setup, touchers); round++)
		manage(setup, &state);
	over = true;
	CHECK(!pthread_join(balloon, NULL));
	for (size_t i = 0; i < TOUCHERS; i++)
		CHECK(!pthread_join(touchers[i].thread, NULL));
}

static void nothing_is_lost_in_a_storm(void)
{
	struct uffdb_trace *trace = make_trace();
	struct uffdb_stats stats;
	struct setup setup;

	make_engine(&setup, SIZE,
		    (struct uffdb_engine_config){
			    .observing = trace ? UFFDB_OBSERVE_TRACE : UFFDB_OBSERVE_NONE,
			    .trace = trace,
			    .follow = true,
			    .around_bytes = HUGE,
			    .nr_rungs = 3,
			    .rungs = {{.kind = UFFDB_RUNG_ZERO_READ},
				      {.kind = UFFDB_RUNG_FREEZE, .hold_ns = 50000},
				      {.kind = UFFDB_RUNG_OBSERVE}},
		    });
	for (uint64_t page = OWNED; page < PAGES; page++)
		atomic_store(word_at(&setup, page), ~page);
	CHECK(!uffdb_engine_start(setup.engine));
	storm(&setup);
	CHECK(!uffdb_engine_reset(setup.engine, 0));
	stats = stats_of(&setup);
	for (size_t error = 0; error < UFFDB_ERRNOS; error++)
		if (stats.failed_errno[error])
			fprintf(stderr, "%lu answers failed with %s\n", stats.failed_errno[error],
				strerror((int)error));
	CHECK(stats.failed == 0);
	CHECK(uffdb_ledger_pages(setup.ledger) == 0);
	CHECK(stats.windows == 0);
	CHECK(stats.armed_bytes == 0);
	CHECK(stats.parked == 0);
	for (uint64_t page = OWNED; page < PAGES; page++)
		CHECK(atomic_load(word_at(&setup, page)) == ~page);
	printf("violations %lu, ordinary %lu, given up %lu, taken back %lu, resyncs %lu\n",
	       stats.violations, stats.ordinary, stats.observed_inflated, stats.observed_deflated,
	       stats.resyncs);
	tear_down(&setup);
	uffdb_trace_destroy(trace);
}

int main(void)
{
	nothing_is_lost_in_a_storm();
	return 0;
}
