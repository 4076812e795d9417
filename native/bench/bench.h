/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the engine is compared with, and what exercises parts of it without a target. */
#ifndef UFFDB_BENCH_H
#define UFFDB_BENCH_H

#include "uffdballoon.h"

enum uffdb_bench_kind {
	UFFDB_BENCH_MANPAGE, /* as userfaultfd(2) shows: poll, read, UFFDIO_COPY, on any CPU */
	UFFDB_BENCH_BEST, /* a blocking read on a given CPU, UFFDIO_ZEROPAGE where there is one */
};

struct uffdb_bench_handler;

/**
 * uffdb_bench_handler_start - answer faults on a thread of its own.
 * @page_size: 4096, or 2 MiB for hugetlbfs
 * @cpu:       to run on, for UFFDB_BENCH_BEST; -1: anywhere
 */
int uffdb_bench_handler_start(int uffd, uint32_t kind, uint64_t page_size, int cpu,
			      struct uffdb_bench_handler **out);

/** uffdb_bench_handler_stop - end it. Return: faults that it answered. */
uint64_t uffdb_bench_handler_stop(struct uffdb_bench_handler *handler);

/**
 * uffdb_bench_scatter - call pages ballooned at random, or at a stride.
 * @fragments: number of pages
 * @seed:      of the random places; 0: at an even stride
 *
 * Return: number of pages that are ballooned now, or -errno.
 */
int64_t uffdb_bench_scatter(struct uffdb_ledger *ledger, uint64_t fragments, uint64_t seed);

/**
 * uffdb_bench_lookups - look pages up at random places of the first RAM block.
 * @span:      bytes of the block to stay within; 0: all of it
 * @dependent: each place depends on what the look-up before found
 *
 * Return: nanoseconds for all @count.
 */
uint64_t uffdb_bench_lookups(const struct uffdb_ledger *ledger, uint64_t count, uint64_t span,
			     bool dependent);

struct uffdb_bench_plan {
	uint64_t changes;	/* that were made */
	uint64_t scratch_ns;	/* from the ledger to a whole plan */
	uint64_t change_p50_ns; /* a 2 MiB block leaves the balloon and comes back */
	uint64_t change_p99_ns;
	uint64_t change_max_ns;
	uint64_t windows;
	uint64_t most_windows; /* at any time */
	uint64_t needed_bytes; /* blocks that hold ballooned pages */
	uint64_t armed_bytes;
	uint64_t memory_bytes; /* of the planner; the ledger's comes on top */
};

/** uffdb_bench_plan - plan the windows of a ledger with one RAM block, registering nothing. */
int uffdb_bench_plan(const struct uffdb_ledger *ledger, uint64_t budget, uint64_t changes,
		     struct uffdb_bench_plan *result);

/* The free memory of a guest, as a buddy allocator keeps it. */
struct uffdb_bench_buddy;

/**
 * uffdb_bench_buddy_create - of a guest of which every page is in use.
 * @pages: a multiple of 2^UFFDB_MAX_ORDER
 *
 * Return: 0, -EINVAL or -ENOMEM.
 */
int uffdb_bench_buddy_create(uint64_t pages, struct uffdb_bench_buddy **out);
void uffdb_bench_buddy_destroy(struct uffdb_bench_buddy *buddy);

/** uffdb_bench_buddy_blocks - how many blocks of each order are free; UFFDB_MAX_ORDER + 1 of @out.
 */
void uffdb_bench_buddy_blocks(const struct uffdb_bench_buddy *buddy, uint64_t *out);

/** uffdb_bench_buddy_free - free pages, all of them in use. Return: 0; -EINVAL: one is free. */
int uffdb_bench_buddy_free(struct uffdb_bench_buddy *buddy, uint64_t first, uint64_t pages);

/**
 * uffdb_bench_buddy_scatter - leave pieces in use at random, and free the rest.
 * @orders: sizes of pieces, a bit an order; each 4 MiB of memory have one of them
 * @in_use: of 1000 pieces so many, on average
 *
 * Return: 0; -EINVAL: something is free already.
 */
int uffdb_bench_buddy_scatter(struct uffdb_bench_buddy *buddy, uint32_t orders, uint32_t in_use,
			      uint64_t seed);

/**
 * uffdb_bench_buddy_take - allocate single pages, as Linux's balloon driver does.
 * @seed:    which of the blocks of an order are taken; 0: the lowest
 * @balloon: of one RAM block, which begins with the guest's first page
 *
 * Return: pages that were taken, fewer than @pages when no more are free; or -errno.
 */
int64_t uffdb_bench_buddy_take(struct uffdb_bench_buddy *buddy, uint64_t pages, uint64_t seed,
			       struct uffdb_ledger *balloon);

#endif
