/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Touches that are held: frozen, waiting for a token, for memory or for the monitor. A thread
 * waits for one page at a time, so there is one entry a thread.
 *
 * A table and nothing else: who is taken out of it is answered by others. One thread changes it.
 */
#ifndef UFFDB_PARKING_H
#define UFFDB_PARKING_H

#include <stdatomic.h>

#include "touch.h"

#define UFFDB_MAX_PARKED 4096 /* a thread waits for one page at a time; no more are held */

struct uffdb_held {
	struct uffdb_touch touch;
	uint64_t id; /* by uffdb_parking_add() */
	uint64_t since_ns;
	uint64_t deadline_ns; /* 0: none */
	uint32_t rung;	      /* that holds it */
	uint8_t action;
};

struct uffdb_parking {
	struct uffdb_held *held;
	_Atomic uint32_t nr; /* any thread may read it */
	uint64_t last_id;
	bool changed; /* since uffdb_parking_take_change() */
};

int uffdb_parking_init(struct uffdb_parking *parking);
void uffdb_parking_release(struct uffdb_parking *parking);

static inline uint32_t uffdb_parking_count(const struct uffdb_parking *parking)
{
	return atomic_load_explicit(&parking->nr, memory_order_relaxed);
}

/* Hold a touch; false when the table is full. */
bool uffdb_parking_add(struct uffdb_parking *parking, const struct uffdb_held *held);

/*
 * Is this the touch that its thread is held for? A signal, or the answer to another thread at the
 * same page, makes it fault again: it stays held, and is no touch of its own. A thread that faults
 * elsewhere is not held any more.
 */
bool uffdb_parking_knows(struct uffdb_parking *parking, const struct uffdb_touch *touch);

/* Take one out that is so; false when there is none. @out may be NULL. */
bool uffdb_parking_take_id(struct uffdb_parking *parking, uint64_t id, struct uffdb_held *out);
bool uffdb_parking_take_in(struct uffdb_parking *parking, uint64_t hva, uint64_t len,
			   struct uffdb_held *out);
bool uffdb_parking_take_expired(struct uffdb_parking *parking, uint64_t now_ns,
				struct uffdb_held *out);
/* Of thread @tid, or of any with 0. */
bool uffdb_parking_take_by(struct uffdb_parking *parking, uint8_t action, uint32_t tid,
			   struct uffdb_held *out);

/* That was added no later than the one with the id @newest. */
bool uffdb_parking_take_older(struct uffdb_parking *parking, uint8_t action, uint64_t newest,
			      struct uffdb_held *out);

/* The earliest deadline; 0: none. */
uint64_t uffdb_parking_deadline(const struct uffdb_parking *parking);

/* Has anything changed since this was asked last? */
bool uffdb_parking_take_change(struct uffdb_parking *parking);

/* Return: entries of @out, which has room for @nr. */
size_t uffdb_parking_list(const struct uffdb_parking *parking, struct uffdb_parked *out, size_t nr);

#endif
