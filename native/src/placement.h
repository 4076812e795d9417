/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keeps the calling thread on the CPU of the threads that fault. */
#ifndef UFFDB_PLACEMENT_H
#define UFFDB_PLACEMENT_H

#include "uffdballoon.h"

#define UFFDB_PLACED_THREADS 16

struct uffdb_placed_thread {
	uint32_t tid;
	int stat_fd;
	int cpu; /* where it ran when we last looked; -1: not known */
	uint32_t since_look;
	uint64_t answered_ns; /* its last fault */
};

struct uffdb_placement {
	int pid;
	int cpu;		 /* where we are bound; -1: anywhere */
	bool following;		 /* right now */
	bool prefers;		 /* to follow: the other way is on trial when they differ */
	uint32_t streak;	 /* faults in a row from another CPU than ours */
	uint64_t round_trip_ns;	 /* what a fault costs its thread: a running average */
	uint64_t cost_before_ns; /* the same, of the other way when it was in use last */
	uint64_t samples;	 /* since the last change of ways */
	uint64_t patience;	 /* samples until the other way is tried again */
	uint32_t next_slot;
	struct uffdb_placed_thread threads[UFFDB_PLACED_THREADS];
};

void uffdb_placement_init(struct uffdb_placement *placement, int pid);
void uffdb_placement_release(struct uffdb_placement *placement);

/* After each batch: @tid faulted last. True when the calling thread was moved. */
bool uffdb_placement_follow(struct uffdb_placement *placement, uint32_t tid, uint64_t read_ns,
			    uint64_t answered_ns);

#endif
