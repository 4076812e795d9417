/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Counters with one writer and any reader, and those of the fault loop. */
#ifndef UFFDB_COUNTERS_H
#define UFFDB_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#include "uffdballoon.h"

/* As struct uffdb_stats has them. */
struct uffdb_counters {
	_Atomic uint64_t ordinary, granted, violations, host_reads;
	_Atomic uint64_t actions[UFFDB_ACTIONS];
	_Atomic uint64_t filled_outside;
	_Atomic uint64_t slipped_writes, exists, retried, gone, failed, together, around_pages;
	_Atomic uint64_t failed_errno[UFFDB_ERRNOS];
	_Atomic uint64_t events_posted, events_dropped, moves;
	_Atomic uint64_t zapped_again; /* the controlling side's */
};

static inline void uffdb_count(_Atomic uint64_t *counter, uint64_t more)
{
	/* One thread is the only writer: no need for a locked addition. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more,
			      memory_order_relaxed);
}

/* An answer failed with -errno @error. */
static inline void uffdb_count_failed(struct uffdb_counters *counters, int error)
{
	uffdb_count(&counters->failed, 1);
	uffdb_count(&counters->failed_errno[-error < UFFDB_ERRNOS ? -error : 0], 1);
}

#endif
