/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the library know of each other. */
#ifndef UFFDB_INTERNAL_H
#define UFFDB_INTERNAL_H

#include <stdatomic.h>
#include <time.h>

#include "uffdballoon.h"

#define UFFDB_PAGE 4096ull
#define UFFDB_HUGE (2ull << 20)

/* Ends a blocking read of the fault loop. A macro of libc's: no constant. */
#define UFFDB_WAKE_SIGNAL (SIGRTMAX - 1)

/* fault_engine.c: that clock, in ns. */
uint64_t uffdb_now_ns(clockid_t clock);

/* Has a thread drop its capabilities: capabilities.c. */
#define UFFDB_DROP_SIGNAL (SIGRTMAX - 2)

/*
 * pagemap.c: 1 when the page holds memory of its own, or a marker is in the page table (which
 * uffdb_resident() tells apart); 0 when absent or the zero page, -errno.
 */
int uffdb_holds_memory(int pagemap_fd, uint64_t hva);

/* pagemap.c: is every page of a range there? False when that cannot be told. */
bool uffdb_is_populated(int pagemap_fd, uint64_t start, uint64_t end);

#define UFFDB_STATUS_BYTES 4096 /* of /proc/PID/status */

/* process.c: read the beginning of a small file as text; false when there is nothing to read. */
bool uffdb_read_text(int dir_fd, const char *path, char *text, size_t room);

/* process.c: what it keeps from being discarded by mlock(), in bytes; 0 when it cannot be told. */
int64_t uffdb_locked_bytes(int pid);

/* pagemap.c: has the process ended, or given up its memory to end? */
bool uffdb_is_gone(int pagemap_fd);

/* pagemap.c: is there a page, and not swapped out? */
bool uffdb_is_present(int pagemap_fd, uint64_t hva);

/* pagemap.c: is the page write-protected by a userfaultfd? */
bool uffdb_is_protected(int pagemap_fd, uint64_t hva);

/* pagemap.c: list zero pages that are not write-protected; as uffdb_resident(). */
int uffdb_loose_zero_pages(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out,
			   size_t nr, uint64_t *next);

/* pagemap.c: of this process; an fd or -errno. */
int uffdb_open_own_pagemap(void);

/* pagemap.c: as uffdb_resident(), with what is mapped by huge pages apart, where that can be told.
 */
struct uffdb_memory {
	uint64_t start;
	uint64_t len;
	bool huge;
};
int uffdb_sized_memory(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_memory *out,
		       size_t nr, uint64_t *next);

/* touched.c: one writer, the fault loop; any reader. Times are of CLOCK_MONOTONIC, 0: never. */
struct uffdb_touched;
int uffdb_touched_create(const struct uffdb_ledger *ledger, struct uffdb_touched **out);
void uffdb_touched_destroy(struct uffdb_touched *touched);
void uffdb_touched_note(struct uffdb_touched *touched, uint64_t hva, uint64_t time_ns);
/* The last in a range of one RAM block, rounded outward to 2 MiB of it. */
uint64_t uffdb_touched_last(const struct uffdb_touched *touched, uint64_t hva, uint64_t len);

/* ledger.c */
const struct uffdb_block *uffdb_ledger_block(const struct uffdb_ledger *ledger, uint64_t hva);
const struct uffdb_block *uffdb_ledger_blocks(const struct uffdb_ledger *ledger, size_t *nr);
/* How large a page of it is, in bytes: the least that can be given up or answered. */
uint64_t uffdb_block_page(const struct uffdb_block *block);
/* Is a range made of whole pages of one RAM block? 0; -ENOENT outside, or empty; -EINVAL. */
int uffdb_ledger_check(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);
/* Number of 2 MiB blocks of the address space that a RAM block reaches into. */
uint64_t uffdb_block_units(const struct uffdb_block *block);
/* Where the contract's state is kept for whoever comes after us; NULL without a file. */
struct uffdb_contract *uffdb_ledger_contract(struct uffdb_ledger *ledger);
/* The same, of what is being taken by uffdb_engine_inflate() and not zapped yet; empty: nothing. */
struct uffdb_range *uffdb_ledger_inflating(struct uffdb_ledger *ledger);
/* The same, of the monitor. */
struct uffdb_monitor_notes {
	_Atomic uint64_t reset_ns; /* CLOCK_MONOTONIC of a reset that has no effect yet, or 0 */
	_Atomic int64_t clock_ahead_ns; /* of CLOCK_REALTIME when it was read last, or 0 */
};
struct uffdb_monitor_notes *uffdb_ledger_notes(struct uffdb_ledger *ledger);
/* In the file of a ledger, beside it: they may outlive it. */
int uffdb_ledger_map_notes(int fd, struct uffdb_monitor_notes **out);
void uffdb_ledger_unmap_notes(struct uffdb_monitor_notes *notes);
/* Mark as if the pages of @range, of one RAM block, had just been set. */
void uffdb_ledger_mark(struct uffdb_ledger *ledger, const struct uffdb_range *range);
/* Was any page set since the marks were begun to be taken? One consumer. */
bool uffdb_ledger_is_marked(const struct uffdb_ledger *ledger);
bool uffdb_ledger_begin_marks(struct uffdb_ledger *ledger);
/* 64 of those 2 MiB blocks: in which was a page set since the last time? */
uint64_t uffdb_ledger_take_marks(struct uffdb_ledger *ledger, size_t index, uint64_t word);

/* windows.c: which 2 MiB blocks are registered. Used by the controlling thread only. */
struct uffdb_windows;
struct uffdb_windows_config {
	const struct uffdb_ledger *ledger;
	int uffd;
	int pagemap_fd; /* or -1 */
	uint32_t modes, shared_modes, hugetlb_modes;
	uint64_t budget;
	uint64_t huge_mappings; /* mappings of huge pages that there may ever be; 0: any number */
	bool keep;		/* no window goes before the end */
	/* Any thread: there is something to arm, or to let go. Not before that was seen to again.
	 */
	void (*wake)(void *argument);
	void *wake_argument;
};

int uffdb_windows_create(const struct uffdb_windows_config *config, struct uffdb_windows **out);
void uffdb_windows_destroy(struct uffdb_windows *windows);
int uffdb_windows_arm(struct uffdb_windows *windows, uint64_t hva, uint64_t len);
int uffdb_windows_trim(struct uffdb_windows *windows, uint64_t hva, uint64_t len);
/* Unregister what is not armed, whoever registered it. */
int uffdb_windows_drop_unknown(struct uffdb_windows *windows, const struct uffdb_block *block);
/* Some pages of a block are not ballooned any more: the one of these that any thread may call. */
void uffdb_windows_note_change(struct uffdb_windows *windows, uint64_t hva);
/* The same of all that is armed. */
void uffdb_windows_note_all(struct uffdb_windows *windows);
/* Is there something for uffdb_windows_tidy()? */
bool uffdb_windows_changed(const struct uffdb_windows *windows);
int uffdb_windows_tidy(struct uffdb_windows *windows);
/* A page was given up, and is in the ledger: any thread. */
void uffdb_windows_note_inflate(struct uffdb_windows *windows, uint64_t hva, uint64_t time_ns);
/* The caller sees to what is fresh or changed right after: nobody has to be woken for it. */
void uffdb_windows_expect(struct uffdb_windows *windows, bool expected);
/* Arm what needs it. Return: blocks; @since_ns: when the first of them was given up; or -errno. */
int uffdb_windows_arm_fresh(struct uffdb_windows *windows, uint64_t *since_ns);
/* Call @look for the blocks that were armed so, once; @looked: were there any? */
typedef int uffdb_look_fn(void *argument, const struct uffdb_range *range);
int uffdb_windows_look(struct uffdb_windows *windows, uffdb_look_fn *look, void *argument,
		       bool *looked);
void uffdb_windows_look_everywhere(struct uffdb_windows *windows);
/* From now on, look at blocks whose pages were given up while they were armed, too. */
void uffdb_windows_look_at_armed(struct uffdb_windows *windows);
/* Does a window cover @hva? Any thread. */
bool uffdb_windows_is_armed(const struct uffdb_windows *windows, uint64_t hva);
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
		uint8_t worker; /* for whom it acts, roles.c */
	} known[UFFDB_KNOWN_THREADS];
};

void uffdb_roles_init(struct uffdb_roles *roles, int pid);
void uffdb_roles_release(struct uffdb_roles *roles);
int uffdb_roles_set_vcpus(struct uffdb_roles *roles, const int32_t *tids, size_t nr);
uint8_t uffdb_roles_of(struct uffdb_roles *roles, uint32_t tid, bool write);

/* thread_ids.c: threads of a target in another pid namespace. Used by the fault loop. */
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
