// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Touches that are held: frozen, waiting for a token, or for the monitor. A
 * thread waits for one page at a time, so there is one entry a thread. Only the
 * fault loop touches the table.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "clock.h"
#include "counter.h"
#include "engine.h"
#include "signals.h"
#include "uffdballoon.h"

#define AGAIN_NS 1000000 /* the signal may come just before the read() that it shall end */

int uffdb_parking_init(struct uffdb_engine *engine)
{
	engine->parked = calloc(UFFDB_MAX_PARKED, sizeof(*engine->parked));
	return engine->parked ? 0 : -ENOMEM;
}

void uffdb_parking_release(struct uffdb_engine *engine)
{
	free(engine->parked);
}

/* Called by the loop's thread, which is the one to be signalled. Return: 0 or -errno. */
int uffdb_parking_start_timer(struct uffdb_engine *engine)
{
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = UFFDB_WAKE_SIGNAL};

	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &engine->deadline_timer))
		return -errno; /* without it, what is held would be held for ever */
	engine->timer_made = true;
	return 0;
}

void uffdb_parking_stop_timer(struct uffdb_engine *engine)
{
	if (engine->timer_made)
		timer_delete(engine->deadline_timer);
	engine->timer_made = false;
}

/* Have read() end at the earliest deadline, and again until it was seen to. */
static void set_timer(struct uffdb_engine *engine)
{
	struct itimerspec when = {.it_interval.tv_nsec = AGAIN_NS};
	uint64_t first = 0;

	for (uint32_t i = 0; i < engine->nr_parked; i++) {
		uint64_t deadline = engine->parked[i].deadline_ns;

		if (deadline && (!first || deadline < first))
			first = deadline;
	}
	if (!first)
		when.it_interval.tv_nsec = 0; /* and a value of 0: disarmed */
	when.it_value = uffdb_timespec(first);
	for (int i = 0; engine->timer_made && i < UFFDB_RETRIES; i++)
		if (!timer_settime(engine->deadline_timer, TIMER_ABSTIME, &when, NULL))
			break;
}

static void changed(struct uffdb_engine *engine)
{
	set_timer(engine);
	atomic_store_explicit(&engine->parked_now, engine->nr_parked, memory_order_relaxed);
}

static void drop(struct uffdb_engine *engine, uint32_t index)
{
	engine->parked[index] = engine->parked[--engine->nr_parked];
	changed(engine);
}

/* Hold a touch; false when the table is full. */
bool uffdb_park(struct uffdb_engine *engine, const struct touch *touch, uint32_t rung,
		uint8_t action, uint64_t deadline_ns)
{
	if (engine->nr_parked == UFFDB_MAX_PARKED)
		return false;
	engine->parked[engine->nr_parked++] = (struct parked){
		.touch = *touch,
		.id = ++engine->last_id,
		.since_ns = touch->lacking_since_ns ? touch->lacking_since_ns
						    : uffdb_now_ns(CLOCK_MONOTONIC),
		.deadline_ns = deadline_ns,
		.rung = rung,
		.action = action,
	};
	changed(engine);
	return true;
}

/*
 * Is this the touch that its thread is held for? A signal, or the answer to
 * another thread at the same page, makes it fault again: it stays held, and is
 * no touch of its own. A thread that faults elsewhere is not held any more.
 */
bool uffdb_is_parked_already(struct uffdb_engine *engine, const struct touch *touch)
{
	for (uint32_t i = 0; i < engine->nr_parked; i++) {
		struct touch *held = &engine->parked[i].touch;

		if (held->tid != touch->tid)
			continue;
		if ((touch->ballooned || held->lacking_since_ns) && held->hva == touch->hva &&
		    held->write == touch->write) {
			held->protected = touch->protected;
			held->minor = touch->minor;
			return true;
		}
		drop(engine, i);
		return false;
	}
	return false;
}

/* Forget who is held in a range, and let them try again when @wake. */
void uffdb_unpark_range(struct uffdb_engine *engine, uint64_t hva, uint64_t len, bool wake)
{
	for (uint32_t i = 0; i < engine->nr_parked;) {
		const struct touch touch = engine->parked[i].touch;

		if (touch.hva < hva || touch.hva >= hva + len) {
			i++;
			continue;
		}
		drop(engine, i);
		if (wake)
			uffdb_let_retry(engine, &touch);
	}
}

static void go_on(struct uffdb_engine *engine, struct parked *held)
{
	switch (held->action) {
	case UFFDB_ACTION_FREEZE:
		uffdb_act(engine, &held->touch, held->rung + 1);
		break;
	case UFFDB_ACTION_THROTTLE:
		uffdb_act(engine, &held->touch, held->rung);
		break;
	case UFFDB_ACTION_NO_MEMORY:
		uffdb_try_again(engine, &held->touch);
		break;
	default: /* nobody came to pause or to poison: the guest must not hang */
		uffdb_count(&engine->failed, 1);
		uffdb_grant(engine, &held->touch, UFFDB_VIOLATION, UFFDB_ACTION_GRANT);
		break;
	}
}

/* Let those go on whose time has come. */
void uffdb_expire(struct uffdb_engine *engine)
{
	uint64_t now = uffdb_now_ns(CLOCK_MONOTONIC);

	for (uint32_t i = 0; i < engine->nr_parked;) {
		struct parked held = engine->parked[i];

		if (!held.deadline_ns || held.deadline_ns > now) {
			i++;
			continue;
		}
		drop(engine, i);
		go_on(engine, &held);
		i = 0; /* the table has changed under us */
	}
}

struct listing {
	struct uffdb_parked *out;
	size_t nr, found;
};

static void list(struct uffdb_engine *engine, void *argument)
{
	struct listing *listing = argument;

	for (uint32_t i = 0; i < engine->nr_parked && listing->found < listing->nr; i++) {
		const struct parked *held = &engine->parked[i];

		listing->out[listing->found++] = (struct uffdb_parked){
			.id = held->id,
			.hva = held->touch.hva,
			.size = held->touch.size,
			.since_ns = held->since_ns,
			.deadline_ns = held->deadline_ns,
			.tid = held->touch.tid,
			.write = held->touch.write,
			.action = held->action,
		};
	}
}

size_t uffdb_engine_parked(struct uffdb_engine *engine, struct uffdb_parked *out, size_t nr)
{
	struct listing listing = {out, nr, 0};

	uffdb_engine_on_loop(engine, list, &listing);
	return listing.found;
}

struct order {
	uint64_t id;
	uint32_t how;
	int error;
};

static void resolve(struct uffdb_engine *engine, void *argument)
{
	struct order *order = argument;
	struct parked held;
	uint32_t i = 0;

	while (i < engine->nr_parked && engine->parked[i].id != order->id)
		i++;
	if (i == engine->nr_parked) {
		order->error = -ENOENT;
		return;
	}
	held = engine->parked[i];
	drop(engine, i);
	held.touch.read_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	/* It was zapped for this: there is nothing to unprotect any more. */
	if (order->how == UFFDB_RESOLVE_POISON && uffdb_poison_page(engine, &held.touch))
		return;
	if (order->how == UFFDB_RESOLVE_NEXT)
		uffdb_act(engine, &held.touch, held.rung + 1);
	else
		uffdb_grant(engine, &held.touch, UFFDB_GRANTED, UFFDB_ACTION_RELEASE);
}

int uffdb_engine_resolve(struct uffdb_engine *engine, uint64_t id, uint32_t how)
{
	struct order order = {.id = id, .how = how};

	uffdb_engine_on_loop(engine, resolve, &order);
	return order.error;
}

struct release {
	uint32_t tid;
	int released;
};

static void release(struct uffdb_engine *engine, void *argument)
{
	struct release *order = argument;

	for (uint32_t i = 0; i < engine->nr_parked;) {
		struct parked held = engine->parked[i];

		if (held.action != UFFDB_ACTION_FREEZE ||
		    (order->tid && held.touch.tid != order->tid)) {
			i++;
			continue;
		}
		drop(engine, i);
		held.touch.read_ns = uffdb_now_ns(CLOCK_MONOTONIC);
		uffdb_grant(engine, &held.touch, UFFDB_GRANTED, UFFDB_ACTION_RELEASE);
		order->released++;
		i = 0; /* others at the same page went with it */
	}
}

int uffdb_engine_release(struct uffdb_engine *engine, uint32_t tid)
{
	struct release order = {.tid = tid};

	uffdb_engine_on_loop(engine, release, &order);
	return order.released;
}
