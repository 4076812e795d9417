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

#endif
