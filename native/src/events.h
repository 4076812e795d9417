/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is told of touches that are not ordinary. The fault loop's. */
#ifndef UFFDB_EVENTS_H
#define UFFDB_EVENTS_H

#include "counters.h"
#include "ring.h"
#include "touch.h"
#include "touched.h"

struct uffdb_events {
	struct uffdb_ring *ring;
	struct uffdb_touched *touched;
	uint64_t seq;
};

/*
 * Tell of a touch. Before its answer, so that whoever sees the guest go on
 * finds it counted and told.
 */
void uffdb_events_post(struct uffdb_events *events, struct uffdb_counters *counters,
		       const struct uffdb_touch *touch, uint8_t verdict, uint8_t action);

#endif
