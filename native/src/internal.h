/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the library know of each other. */
#ifndef UFFDB_INTERNAL_H
#define UFFDB_INTERNAL_H

#include <stdatomic.h>

#include "uffdballoon.h"

#define UFFDB_PAGE 4096ull
#define UFFDB_HUGE (2ull << 20)

/* Ends a blocking read of the fault loop. A macro of libc's: no constant. */
#define UFFDB_WAKE_SIGNAL (SIGRTMAX - 1)

/* pagemap.c: 1 when the page holds memory of its own, 0 when absent or the zero page, -errno. */
int uffdb_holds_memory(int pagemap_fd, uint64_t hva);

/* pagemap.c: is every page of a range there? False when that cannot be told. */
bool uffdb_is_populated(int pagemap_fd, uint64_t start, uint64_t end);

/* pagemap.c: has the process ended, or given up its memory to end? */
bool uffdb_is_gone(int pagemap_fd);

/* pagemap.c: is the page write-protected by a userfaultfd? */
bool uffdb_is_protected(int pagemap_fd, uint64_t hva);

/* ledger.c */
const struct uffdb_block *uffdb_ledger_block(const struct uffdb_ledger *ledger, uint64_t hva);
const struct uffdb_block *uffdb_ledger_blocks(const struct uffdb_ledger *ledger, size_t *nr);

/* windows.c: which 2 MiB blocks are registered. Used by the controlling thread only. */
struct uffdb_windows;
struct uffdb_windows_config {
	const struct uffdb_ledger *ledger;
	int uffd;
	int pagemap_fd; /* or -1 */
	uint32_t modes, shared_modes;
	uint64_t budget;
};

int uffdb_windows_create(const struct uffdb_windows_config *config, struct uffdb_windows **out);
void uffdb_windows_destroy(struct uffdb_windows *windows);
int uffdb_windows_arm(struct uffdb_windows *windows, uint64_t hva, uint64_t len);
int uffdb_windows_trim(struct uffdb_windows *windows, uint64_t hva, uint64_t len);
/* Some pages of a block are not ballooned any more: the one of these that any thread may call. */
void uffdb_windows_note_change(struct uffdb_windows *windows, uint64_t hva);
int uffdb_windows_tidy(struct uffdb_windows *windows);
uint64_t uffdb_windows_count(const struct uffdb_windows *windows);
uint64_t uffdb_windows_bytes(const struct uffdb_windows *windows);

/* ring.c: one producer, the fault loop; one consumer. */
struct uffdb_ring;
int uffdb_ring_create(uint32_t records, struct uffdb_ring **out);
void uffdb_ring_destroy(struct uffdb_ring *ring);
bool uffdb_ring_post(struct uffdb_ring *ring, const struct uffdb_event *event);
size_t uffdb_ring_drain(struct uffdb_ring *ring, struct uffdb_event *events, size_t nr);
int uffdb_ring_fd(const struct uffdb_ring *ring);

/* histogram.c: 16 linear steps in each power of two. One writer, any reader. */
#define UFFDB_HISTOGRAM_STEPS	16
#define UFFDB_HISTOGRAM_BUCKETS (UFFDB_HISTOGRAM_STEPS * 61)

struct uffdb_histogram {
	_Atomic uint64_t counts[UFFDB_HISTOGRAM_BUCKETS];
};

void uffdb_histogram_add(struct uffdb_histogram *histogram, uint64_t value);
size_t uffdb_histogram_list(const struct uffdb_histogram *histogram, struct uffdb_bucket *out,
			    size_t nr);
uint64_t uffdb_histogram_quantile(const struct uffdb_histogram *histogram, uint32_t permille);

/* roles.c: who touches. */
#define UFFDB_KNOWN_THREADS 64

struct tid_set;
struct uffdb_roles {
	_Atomic(struct tid_set *) vcpus;
	int task_fd; /* /proc/PID/task */
	struct {
		uint32_t tid;
		bool worker;
	} known[UFFDB_KNOWN_THREADS];
};

void uffdb_roles_init(struct uffdb_roles *roles, int pid);
void uffdb_roles_release(struct uffdb_roles *roles);
int uffdb_roles_set_vcpus(struct uffdb_roles *roles, const int32_t *tids, size_t nr);
uint8_t uffdb_roles_of(struct uffdb_roles *roles, uint32_t tid, bool write);

/* placement.c: keeps the calling thread on the CPU of the threads that fault. */
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
