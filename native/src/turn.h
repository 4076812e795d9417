/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The loop's turn, in which it answers touches and counts them, before or after the answer. Who
 * reads the counters waits for its end; so a loop that waits for others has none.
 */
#ifndef UFFDB_TURN_H
#define UFFDB_TURN_H

#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#define UFFDB_TURN_POLL_NS 20000

struct uffdb_turn {
	_Atomic uint64_t number; /* odd between begin and end */
};

static inline void uffdb_turn_begin(struct uffdb_turn *turn)
{
	/* Before any answer: who goes on because of one sees the turn that it was given in. */
	atomic_fetch_add(&turn->number, 1);
}

static inline void uffdb_turn_end(struct uffdb_turn *turn)
{
	atomic_fetch_add_explicit(&turn->number, 1, memory_order_release);
}

/* Wait until what was answered by now is counted: at most for the rest of this turn. */
static inline void uffdb_turn_await_end(const struct uffdb_turn *turn)
{
	const struct timespec pause = {.tv_nsec = UFFDB_TURN_POLL_NS};
	uint64_t number = atomic_load_explicit(&turn->number, memory_order_acquire);

	if (!(number & 1))
		return;
	while (atomic_load_explicit(&turn->number, memory_order_acquire) == number)
		nanosleep(&pause, NULL);
}

#endif
