// SPDX-License-Identifier: GPL-2.0-or-later
/* Pages of 2 MiB. The tables are filled in as memory is asked for: emulated, it takes its time. */
#include "paging.h"

enum {
	ENTRIES = 512,
	GIBS = 64,
	GIB_SHIFT = 30,
	PAGE_SHIFT = 21,
	TABLE_FLAGS = 0x03, /* writable, present */
	PAGE_FLAGS = 0x83,  /* the same, and large */
};

/* boot.S fills in the first GiB. */
uint64_t paging_top[ENTRIES] __attribute__((aligned(4096)));
uint64_t paging_gibs[ENTRIES] __attribute__((aligned(4096)));
uint64_t paging_pages[GIBS][ENTRIES] __attribute__((aligned(4096)));

/* Two processors may do this at once: they write the same, and the entry that counts is last. */
static void add_gib(uint64_t gib)
{
	for (uint64_t i = 0; i < ENTRIES; i++)
		paging_pages[gib][i] = gib << GIB_SHIFT | i << PAGE_SHIFT | PAGE_FLAGS;
	__atomic_store_n(&paging_gibs[gib], (uint64_t)paging_pages[gib] | TABLE_FLAGS,
			 __ATOMIC_RELEASE);
}

void *paging_map(uint64_t gpa)
{
	const uint64_t gib = gpa >> GIB_SHIFT;

	if (gib < GIBS && !paging_gibs[gib])
		add_gib(gib);
	return (void *)gpa;
}
