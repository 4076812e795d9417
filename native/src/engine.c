// SPDX-License-Identifier: GPL-2.0-or-later
/* What the controlling side calls: the life of an engine, and what changes what touches mean. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "answer.h"
#include "drop.h"
#include "engine.h"
#include "follower.h"
#include "ladder.h"
#include "ledger.h"
#include "loop.h"
#include "mailbox.h"
#include "observe.h"
#include "pages.h"
#include "parking.h"
#include "placement.h"
#include "reset.h"
#include "ring.h"
#include "roles.h"
#include "scan.h"
#include "settle.h"
#include "slack.h"
#include "thread_ids.h"
#include "touched.h"
#include "turn.h"
#include "uffdballoon.h"
#include "windows.h"

/* Registered for write protection alone, memory tells of its removal and costs nothing else. */
static int ask_for_events(struct uffdb_engine *engine)
{
	const struct uffdb_block *blocks;
	int error = 0;
	size_t nr;

	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; !error && i < nr; i++)
		error = uffdb_uffd_register(engine->config.uffd, blocks[i].hva, blocks[i].size,
					    UFFDB_MODE_WP);
	return error;
}

static void wake_follower(void *argument)
{
	uffdb_follower_wake(argument);
}

static int make_answerer(struct uffdb_engine *engine)
{
	const struct uffdb_engine_config *config = &engine->config;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *zeros = mmap(NULL, UFFDB_HUGE, PROT_READ, flags, -1, 0);

	engine->answerer = (struct uffdb_answerer){
		.uffd = config->uffd,
		.pagemap_fd = config->pagemap_fd,
		.zeros = zeros == MAP_FAILED ? NULL : zeros,
		.write_protect = config->write_protect,
		.write_protect_shared = config->write_protect_shared,
		.around_bytes = config->around_bytes,
		.ledger = engine->ledger,
		.counters = &engine->counters,
	};
	return engine->answerer.zeros ? 0 : -ENOMEM;
}

static int make_parts(struct uffdb_engine *engine)
{
	const struct uffdb_engine_config *config = &engine->config;
	uint32_t wp = config->write_protect ? UFFDB_MODE_WP : 0;
	uint32_t shared_wp = config->write_protect_shared ? UFFDB_MODE_WP : 0;
	uint32_t shmem = config->minor_shmem ? UFFDB_MODE_MINOR : 0;
	uint32_t hugetlb = config->minor_hugetlbfs ? UFFDB_MODE_MINOR : 0;
	const struct uffdb_windows_config windows = {
		.ledger = engine->ledger,
		.uffd = config->uffd,
		.pagemap_fd = config->pagemap_fd,
		.modes = UFFDB_MODE_MISSING | wp,
		.shared_modes = UFFDB_MODE_MISSING | shared_wp | shmem,
		.hugetlb_modes = UFFDB_MODE_MISSING | shared_wp | hugetlb,
		.budget = config->window_budget,
		.huge_mappings = config->huge_mappings,
		/* A window that goes takes the events of its memory along. */
		.keep = config->observing == UFFDB_OBSERVE_EVENTS,
		.wake = wake_follower,
		.wake_argument = engine,
	};
	int error;

	error = make_answerer(engine);
	if (!error)
		error = uffdb_parking_init(&engine->parking);
	if (!error)
		error = uffdb_drop_init(engine);
	if (!error)
		error = uffdb_ring_create(config->ring_records, &engine->events.ring);
	if (!error)
		error = uffdb_windows_create(&windows, &engine->windows);
	if (!error)
		error = uffdb_touched_create(engine->ledger, &engine->events.touched);
	if (!error && config->observing)
		error = uffdb_observer_create(engine);
	if (!error && config->observing == UFFDB_OBSERVE_EVENTS)
		error = ask_for_events(engine);
	if (!error && config->observing == UFFDB_OBSERVE_SCAN)
		error = (int)uffdb_scan(engine);
	if (!error)
		error = uffdb_follower_create(engine);
	engine->slack.on = !error && uffdb_can_slacken(engine);
	return error;
}

int uffdb_engine_create(const struct uffdb_engine_config *config, struct uffdb_ledger *ledger,
			struct uffdb_engine **out)
{
	struct uffdb_engine *engine;
	int error;

	engine = calloc(1, sizeof(*engine));
	if (!engine)
		return -ENOMEM;
	error = uffdb_ladder_init(&engine->ladder, config->rungs, config->nr_rungs);
	if (error) {
		free(engine);
		return error;
	}
	engine->config = *config;
	engine->contract.terms = config->terms;
	engine->ledger = ledger;
	engine->wake_fd = engine->news_fd = -1;
	sem_init(&engine->started, 0, 0);
	pthread_mutex_init(&engine->control, NULL);
	uffdb_mailbox_init(&engine->mailbox);
	uffdb_placement_init(&engine->placement, config->pid);
	uffdb_roles_init(&engine->roles, config->pid);
	uffdb_thread_ids_init(&engine->thread_ids, config->pid);
	error = make_parts(engine);
	if (error) {
		uffdb_engine_destroy(engine);
		return error;
	}
	*out = engine;
	return 0;
}

void uffdb_engine_destroy(struct uffdb_engine *engine)
{
	if (!engine)
		return;
	uffdb_engine_stop(engine);
	uffdb_windows_destroy(engine->windows);
	uffdb_touched_destroy(engine->events.touched);
	uffdb_observer_destroy(engine->observer);
	uffdb_ring_destroy(engine->events.ring);
	if (engine->answerer.zeros)
		munmap((void *)engine->answerer.zeros, UFFDB_HUGE);
	uffdb_roles_release(&engine->roles);
	uffdb_thread_ids_release(&engine->thread_ids);
	uffdb_drop_release(engine);
	uffdb_parking_release(&engine->parking);
	uffdb_follower_destroy(engine);
	uffdb_mailbox_release(&engine->mailbox);
	pthread_mutex_destroy(&engine->control);
	sem_destroy(&engine->started);
	free(engine);
}

int uffdb_engine_start(struct uffdb_engine *engine)
{
	int error;

	if (engine->running)
		return -EALREADY;
	error = uffdb_loop_start(engine);
	if (!error)
		error = uffdb_follower_start(engine);
	if (error)
		uffdb_engine_stop(engine);
	return error;
}

void uffdb_engine_stop(struct uffdb_engine *engine)
{
	if (!engine->running)
		return;
	uffdb_follower_stop(engine);
	uffdb_loop_stop(engine);
}

struct marking {
	uint64_t hva, len;
	int64_t pages;
};

static void mark_ballooned(struct uffdb_engine *engine, void *argument)
{
	struct marking *marking = argument;

	marking->pages = uffdb_ledger_set(engine->ledger, marking->hva, marking->len);
	uffdb_forget_reports(engine, marking->hva, marking->len);
	uffdb_forget_pieces(engine, marking->hva, marking->len);
	if (engine->observer)
		uffdb_observe_certainty(engine, marking->hva, marking->len);
}

/*
 * For whoever comes after us, should we be killed before all of it is zapped: add a range to what
 * is noted. The length first: killed in between, we have noted all of the old range and more.
 */
static void note_inflating(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	struct uffdb_range *inflating = uffdb_ledger_inflating(engine->ledger);
	uint64_t end = hva + len;

	if (!inflating)
		return;
	if (inflating->len) {
		if (hva > inflating->start)
			hva = inflating->start;
		if (end < inflating->start + inflating->len)
			end = inflating->start + inflating->len;
	}
	inflating->len = end - hva;
	atomic_signal_fence(memory_order_seq_cst);
	inflating->start = hva;
}

int64_t uffdb_engine_inflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	struct marking marking = {hva, len, 0};
	int error = uffdb_ledger_check(engine->ledger, hva, len);

	/* Before anything is armed for it. */
	if (error)
		return error;
	pthread_mutex_lock(&engine->control);
	note_inflating(engine, hva, len);
	/* What is to be zapped is there still, and was not taken. */
	error = uffdb_slack_tighten(engine);
	if (!error)
		error = uffdb_windows_arm(engine->windows, hva, len);
	if (!error)
		uffdb_call_on_loop(engine, mark_ballooned, &marking);
	pthread_mutex_unlock(&engine->control);
	return error ? error : marking.pages;
}

void uffdb_engine_inflated(struct uffdb_engine *engine)
{
	struct uffdb_range *inflating = uffdb_ledger_inflating(engine->ledger);

	if (inflating)
		inflating->len = 0;
}

static void mark_owned(struct uffdb_engine *engine, void *argument)
{
	struct marking *marking = argument;

	marking->pages = uffdb_ledger_clear(engine->ledger, marking->hva, marking->len);
	uffdb_forget_reports(engine, marking->hva, marking->len);
	uffdb_forget_pieces(engine, marking->hva, marking->len);
	uffdb_let_go(engine, marking->hva, marking->len);
}

static int64_t untrap(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	struct marking marking = {hva, len, 0};
	int error;

	uffdb_call_on_loop(engine, mark_owned, &marking);
	if (marking.pages < 0)
		return marking.pages;
	error = uffdb_windows_trim(engine->windows, hva, len);
	if (!error)
		error = uffdb_windows_unprotect(engine->windows, hva, len);
	return error ? error : marking.pages;
}

int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	int64_t pages = uffdb_ledger_check(engine->ledger, hva, len);

	if (pages)
		return pages;
	pthread_mutex_lock(&engine->control);
	pages = untrap(engine, hva, len);
	pthread_mutex_unlock(&engine->control);
	return pages;
}

static void set_relay(struct uffdb_engine *engine, void *argument)
{
	engine->relay = argument;
}

void uffdb_engine_watch_resets(struct uffdb_engine *engine, struct uffdb_relay *relay)
{
	/* A loop that does not run yet drains nothing: a reset that is kept comes first. */
	if (engine->running)
		uffdb_call_on_loop(engine, set_relay, relay);
	else
		set_relay(engine, relay);
}

static void hear_of_reset(struct uffdb_engine *engine, void *at_ns)
{
	uffdb_hear_of_reset(engine, *(const uint64_t *)at_ns);
}

int uffdb_engine_reset(struct uffdb_engine *engine, uint64_t at_ns)
{
	const struct uffdb_block *blocks;
	int error = 0;
	size_t nr;

	pthread_mutex_lock(&engine->control);
	uffdb_call_on_loop(engine, hear_of_reset, &at_ns);
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; !error && i < nr; i++)
		error = uffdb_windows_trim(engine->windows, blocks[i].hva, blocks[i].size);
	pthread_mutex_unlock(&engine->control);
	return error;
}

int uffdb_engine_tidy(struct uffdb_engine *engine)
{
	int blocks;

	pthread_mutex_lock(&engine->control);
	blocks = uffdb_windows_tidy(engine->windows);
	pthread_mutex_unlock(&engine->control);
	return blocks;
}

int uffdb_engine_set_vcpus(struct uffdb_engine *engine, const int32_t *tids, size_t nr)
{
	uffdb_thread_ids_forget(&engine->thread_ids);
	return uffdb_roles_set_vcpus(&engine->roles, tids, nr);
}

static void read_contract(struct uffdb_engine *engine, void *argument)
{
	*(struct uffdb_contract *)argument = engine->contract;
}

void uffdb_engine_contract(struct uffdb_engine *engine, struct uffdb_contract *out)
{
	uffdb_call_on_loop(engine, read_contract, out);
}

int uffdb_engine_event_fd(const struct uffdb_engine *engine)
{
	return uffdb_ring_fd(engine->events.ring);
}

size_t uffdb_engine_drain(struct uffdb_engine *engine, struct uffdb_event *events, size_t nr)
{
	uffdb_turn_await_end(&engine->turn);
	return uffdb_ring_drain(engine->events.ring, events, nr);
}
