// SPDX-License-Identifier: GPL-2.0-or-later
#include "events.h"
#include "clock.h"
#include "counters.h"
#include "ring.h"
#include "touch.h"
#include "touched.h"
#include "uffdballoon.h"

void uffdb_events_post(struct uffdb_events *events, struct uffdb_counters *counters,
		       const struct uffdb_touch *touch, uint8_t verdict, uint8_t action)
{
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	const struct uffdb_event event = {
		.seq = events->seq++,
		.time_ns = uffdb_now_ns(CLOCK_REALTIME),
		.hva = touch->hva,
		.size = touch->size,
		.answer_ns = now_ns - touch->read_ns,
		.tid = touch->tid,
		.write = touch->write,
		.verdict = verdict,
		.action = action,
		.role = touch->role,
	};

	uffdb_touched_note(events->touched, touch->hva, now_ns);
	uffdb_count(&counters->actions[action], 1);
	uffdb_count(uffdb_ring_post(events->ring, &event) ? &counters->events_posted
							  : &counters->events_dropped,
		    1);
}
