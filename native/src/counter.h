/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Counters with one writer and any reader. */
#ifndef UFFDB_COUNTER_H
#define UFFDB_COUNTER_H

#include <stdatomic.h>
#include <stdint.h>

static inline void uffdb_count(_Atomic uint64_t *counter, uint64_t more)
{
	/* One thread is the only writer: no need for a locked addition. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more,
			      memory_order_relaxed);
}

#endif
