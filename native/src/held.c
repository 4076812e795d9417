// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>

#include "answer.h"
#include "clock.h"
#include "counters.h"
#include "engine.h"
#include "held.h"
#include "ledger.h"
#include "mailbox.h"
#include "parking.h"
#include "settle.h"
#include "touch.h"
#include "uffdballoon.h"

/* What was held for want of memory. */
static void try_again(struct uffdb_engine *engine, struct uffdb_touch *touch)
{
	bool ballooned = uffdb_ledger_test(engine->ledger, touch->hva) > 0;

	/* It changed hands meanwhile: whoever waits faults anew, and is judged anew. */
	if (ballooned != (touch->lacking != UFFDB_LACKS_PAGE)) {
		uffdb_answer_retry(&engine->answerer, touch);
		return;
	}
	touch->read_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	switch (touch->lacking) {
	case UFFDB_LACKS_GRANT:
		uffdb_grant(engine, touch, touch->lacking_verdict, touch->lacking_action);
		break;
	case UFFDB_LACKS_ZEROS:
		if (touch->protected || touch->minor || !uffdb_give_zeros(engine, touch))
			uffdb_settle(engine, touch, 0);
		break;
	default:
		uffdb_give(engine, touch);
		break;
	}
}

static void go_on_by_time(struct uffdb_engine *engine, struct uffdb_held *held)
{
	switch (held->action) {
	case UFFDB_ACTION_FREEZE:
		uffdb_settle(engine, &held->touch, held->rung + 1);
		break;
	case UFFDB_ACTION_THROTTLE:
		uffdb_settle(engine, &held->touch, held->rung);
		break;
	case UFFDB_ACTION_NO_MEMORY:
		try_again(engine, &held->touch);
		break;
	default: /* nobody came to pause or to poison: the guest must not hang */
		uffdb_count_failed(&engine->counters, -ETIMEDOUT);
		uffdb_grant(engine, &held->touch, UFFDB_VIOLATION, UFFDB_ACTION_GRANT);
		break;
	}
}

void uffdb_held_expire(struct uffdb_engine *engine)
{
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	struct uffdb_held held;

	while (uffdb_parking_take_expired(&engine->parking, now_ns, &held))
		go_on_by_time(engine, &held);
}

struct listing {
	struct uffdb_parked *out;
	size_t nr, found;
};

static void list_held(struct uffdb_engine *engine, void *argument)
{
	struct listing *listing = argument;

	listing->found = uffdb_parking_list(&engine->parking, listing->out, listing->nr);
}

size_t uffdb_engine_parked(struct uffdb_engine *engine, struct uffdb_parked *out, size_t nr)
{
	struct listing listing = {out, nr, 0};

	uffdb_call_on_loop(engine, list_held, &listing);
	return listing.found;
}

struct resolution {
	uint64_t id;
	uint32_t how;
	int error;
};

static void resolve_held(struct uffdb_engine *engine, void *argument)
{
	struct resolution *resolution = argument;
	struct uffdb_held held;

	if (!uffdb_parking_take_id(&engine->parking, resolution->id, &held)) {
		resolution->error = -ENOENT;
		return;
	}
	held.touch.read_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	/* It was zapped for this: there is nothing to unprotect any more. */
	if (resolution->how == UFFDB_RESOLVE_POISON &&
	    !uffdb_answer_poison(&engine->answerer, &held.touch))
		return;
	if (resolution->how == UFFDB_RESOLVE_NEXT)
		uffdb_settle(engine, &held.touch, held.rung + 1);
	else
		uffdb_grant(engine, &held.touch, UFFDB_GRANTED, UFFDB_ACTION_RELEASE);
}

int uffdb_engine_resolve(struct uffdb_engine *engine, uint64_t id, uint32_t how)
{
	struct resolution resolution = {.id = id, .how = how};

	uffdb_call_on_loop(engine, resolve_held, &resolution);
	return resolution.error;
}

struct release {
	uint32_t tid;
	int released;
};

static void release_frozen(struct uffdb_engine *engine, void *argument)
{
	struct release *release = argument;
	struct uffdb_held held;

	while (uffdb_parking_take_by(&engine->parking, UFFDB_ACTION_FREEZE, release->tid, &held)) {
		held.touch.read_ns = uffdb_now_ns(CLOCK_MONOTONIC);
		/* Others at the same page go with it. */
		uffdb_grant(engine, &held.touch, UFFDB_GRANTED, UFFDB_ACTION_RELEASE);
		release->released++;
	}
}

int uffdb_engine_release(struct uffdb_engine *engine, uint32_t tid)
{
	struct release release = {.tid = tid};

	uffdb_call_on_loop(engine, release_frozen, &release);
	return release.released;
}
