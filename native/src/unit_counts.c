// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <sys/mman.h>

#include "unit_counts.h"

int uffdb_unit_counts_map(struct uffdb_unit_counts *counts, uint64_t nr)
{
	void *pages = mmap(NULL, nr * sizeof(*counts->pages), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (pages == MAP_FAILED)
		return -errno;
	counts->pages = pages;
	counts->nr = nr;
	return 0;
}

void uffdb_unit_counts_unmap(struct uffdb_unit_counts *counts)
{
	if (counts->pages)
		munmap((void *)counts->pages, counts->nr * sizeof(*counts->pages));
}

/*
 * A clear() may be counted before the set() that it undoes: a count of less than nothing is
 * broken, too, for the changes from one to the next add up whatever lies between.
 */
static void enter(struct uffdb_unit_counts *counts, uint16_t pages, uint64_t size, int64_t by)
{
	if (pages == size)
		atomic_fetch_add(&counts->whole, by);
	else if (pages)
		atomic_fetch_add(&counts->broken, by);
}

void uffdb_unit_counts_add(struct uffdb_unit_counts *counts, uint64_t unit, uint64_t size,
			   int64_t change)
{
	uint16_t before = atomic_fetch_add(&counts->pages[unit], (uint16_t)change);

	enter(counts, (uint16_t)(before + change), size, 1);
	enter(counts, before, size, -1);
}

uint64_t uffdb_unit_counts_of(const struct uffdb_unit_counts *counts, uint64_t unit, uint64_t size)
{
	int16_t pages = (int16_t)atomic_load_explicit(&counts->pages[unit], memory_order_relaxed);

	if (pages < 0)
		return 0;
	return (uint64_t)pages < size ? (uint64_t)pages : size;
}

static uint64_t within(int64_t count, uint64_t most)
{
	if (count < 0)
		return 0;
	return (uint64_t)count < most ? (uint64_t)count : most;
}

void uffdb_unit_counts_tally(const struct uffdb_unit_counts *counts, struct uffdb_tally *out)
{
	out->broken = within(atomic_load(&counts->broken), counts->nr);
	out->whole = within(atomic_load(&counts->whole), counts->nr - out->broken);
	out->untouched = counts->nr - out->broken - out->whole;
}
