// SPDX-License-Identifier: GPL-2.0-or-later
#include <signal.h>

#include "clock.h"
#include "engine.h"
#include "mailbox.h"
#include "observe.h"
#include "signals.h"
#include "turn.h"
#include "uffdballoon.h"

#define WAKE_EVERY_NS 1000000

void uffdb_mailbox_init(struct uffdb_mailbox *mailbox)
{
	pthread_mutex_init(&mailbox->calling, NULL);
	sem_init(&mailbox->done, 0, 0);
	sem_init(&mailbox->held, 0, 0);
	sem_init(&mailbox->let_go, 0, 0);
}

void uffdb_mailbox_release(struct uffdb_mailbox *mailbox)
{
	pthread_mutex_destroy(&mailbox->calling);
	sem_destroy(&mailbox->done);
	sem_destroy(&mailbox->held);
	sem_destroy(&mailbox->let_go);
}

void uffdb_wake_loop(struct uffdb_engine *engine)
{
	pthread_kill(engine->thread, UFFDB_WAKE_SIGNAL);
}

/* Wake the loop, and wait for what it posts: false when it has not yet. */
static bool wake_and_wait(struct uffdb_engine *engine, sem_t *posted)
{
	struct timespec until;

	uffdb_wake_loop(engine);
	until = uffdb_timespec(uffdb_now_ns(CLOCK_MONOTONIC) + WAKE_EVERY_NS);
	return !sem_clockwait(posted, CLOCK_MONOTONIC, &until);
}

static void post_call(struct uffdb_engine *engine, uffdb_loop_call *call, void *argument)
{
	struct uffdb_mailbox *mailbox = &engine->mailbox;

	mailbox->argument = argument;
	atomic_store_explicit(&mailbox->call, call, memory_order_release);
	while (!atomic_load(&engine->stopped)) {
		wake_and_wait(engine, &mailbox->done);
		if (!atomic_load_explicit(&mailbox->call, memory_order_acquire))
			return;
	}
	/* The loop ended by itself: the target is gone. It may have made the call at its end. */
	if (atomic_exchange(&mailbox->call, NULL))
		call(engine, argument);
}

void uffdb_call_on_loop(struct uffdb_engine *engine, uffdb_loop_call *call, void *argument)
{
	if (!engine->running) {
		if (engine->observer)
			uffdb_observe(engine);
		call(engine, argument);
		return;
	}
	pthread_mutex_lock(&engine->mailbox.calling);
	post_call(engine, call, argument);
	pthread_mutex_unlock(&engine->mailbox.calling);
}

void uffdb_serve_call(struct uffdb_engine *engine)
{
	struct uffdb_mailbox *mailbox = &engine->mailbox;
	uffdb_loop_call *call = atomic_load_explicit(&mailbox->call, memory_order_acquire);

	if (!call)
		return;
	/* It may have been asked for after the drain that this round of the loop began with. */
	if (engine->observer)
		uffdb_observe(engine);
	call(engine, mailbox->argument);
	atomic_store_explicit(&mailbox->call, NULL, memory_order_release);
	sem_post(&mailbox->done);
}

static void wait_until_let_go(struct uffdb_engine *engine, void *argument)
{
	(void)argument;
	uffdb_turn_end(&engine->turn); /* whoever holds us may read the counters meanwhile */
	sem_post(&engine->mailbox.held);
	/* Woken by uffdb_let_loop_go(). */
	while (sem_wait(&engine->mailbox.let_go))
		;
	uffdb_turn_begin(&engine->turn);
}

bool uffdb_hold_loop(struct uffdb_engine *engine)
{
	struct uffdb_mailbox *mailbox = &engine->mailbox;

	if (!engine->running)
		return false;
	pthread_mutex_lock(&mailbox->calling);
	atomic_store_explicit(&mailbox->call, wait_until_let_go, memory_order_release);
	while (!atomic_load(&engine->stopped))
		if (wake_and_wait(engine, &mailbox->held))
			return true;
	atomic_store(&mailbox->call, NULL);
	pthread_mutex_unlock(&mailbox->calling);
	return false;
}

void uffdb_let_loop_go(struct uffdb_engine *engine)
{
	sem_post(&engine->mailbox.let_go);
	while (sem_wait(&engine->mailbox.done))
		;
	pthread_mutex_unlock(&engine->mailbox.calling);
}
