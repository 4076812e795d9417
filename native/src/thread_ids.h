/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads of a target in another pid namespace. Used by the fault loop. */
#ifndef UFFDB_THREAD_IDS_H
#define UFFDB_THREAD_IDS_H

#include <stdatomic.h>

#include "uffdballoon.h"

#define UFFDB_KNOWN_THREADS 64

struct uffdb_thread_ids {
	int task_fd; /* /proc/PID/task */
	bool foreign;
	_Atomic bool stale;
	struct {
		uint32_t own, here;
	} known[UFFDB_KNOWN_THREADS];
};

void uffdb_thread_ids_init(struct uffdb_thread_ids *ids, int pid);
void uffdb_thread_ids_release(struct uffdb_thread_ids *ids);
/* The target's threads are others than before: any thread may call it. */
void uffdb_thread_ids_forget(struct uffdb_thread_ids *ids);
/* Our id of the thread that calls itself @own; @own when the target has no such thread. */
uint32_t uffdb_thread_here(struct uffdb_thread_ids *ids, uint32_t own);

#endif
