// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * When the host has no page to give: a pool of huge pages that others have emptied, most of all.
 * The touch is held and its thread waits; it is tried again now and then, for nothing tells of a
 * page that came back. Letting the thread fault on its own would be a SIGBUS or a storm.
 */
#include "scarce.h"
#include "answer.h"
#include "clock.h"
#include "engine.h"
#include "events.h"
#include "parking.h"
#include "process.h"
#include "touch.h"
#include "uffdballoon.h"

#define AGAIN_NS 20000000ull

static bool is_too_long(const struct uffdb_engine *engine, const struct uffdb_touch *held,
			uint64_t now_ns)
{
	uint64_t patience_ns = engine->config.memory_patience_ns;

	return patience_ns && now_ns - held->lacking_since_ns >= patience_ns;
}

void uffdb_hold_for_memory(struct uffdb_engine *engine, const struct uffdb_touch *touch,
			   enum uffdb_lacking lacking)
{
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	struct uffdb_held held = {
		.touch = *touch,
		.deadline_ns = now_ns + AGAIN_NS,
		.action = UFFDB_ACTION_NO_MEMORY,
	};

	held.touch.lacking = lacking;
	if (!touch->lacking_since_ns) {
		held.touch.lacking_since_ns = now_ns;
		uffdb_events_post(&engine->events, &engine->counters, touch, UFFDB_ORDINARY,
				  UFFDB_ACTION_NO_MEMORY);
	}
	held.since_ns = held.touch.lacking_since_ns;
	if (is_too_long(engine, &held.touch, now_ns)) {
		uffdb_events_post(&engine->events, &engine->counters, touch, UFFDB_ORDINARY,
				  UFFDB_ACTION_KILL);
		uffdb_process_kill(engine->config.pidfd);
		held.deadline_ns = 0; /* held until it has ended */
	}
	/* A full table: its thread tries again by itself, and comes back here. */
	if (!uffdb_parking_add(&engine->parking, &held))
		uffdb_answer_retry(&engine->answerer, touch);
}
