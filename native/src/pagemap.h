/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the page tables of a process hold. */
#ifndef UFFDB_PAGEMAP_H
#define UFFDB_PAGEMAP_H

#include "uffdballoon.h"

/*
 * 1 when the page holds memory of its own, or a marker is in the page table (which
 * uffdb_resident() tells apart); 0 when absent or the zero page, -errno.
 */
int uffdb_holds_memory(int pagemap_fd, uint64_t hva);

/* Is every page of a range there? False when that cannot be told. */
bool uffdb_is_populated(int pagemap_fd, uint64_t start, uint64_t end);

/* Does any page of a range hold memory of its own? True as well when that cannot be told. */
bool uffdb_has_memory(int pagemap_fd, uint64_t start, uint64_t end);

/*
 * Is the page, or the huge page that it is of, neither the zero page nor the huge zero page? Older
 * kernels have PAGEMAP_SCAN call the second memory ("fs/proc/task_mmu: fix PAGE_IS_PFNZERO
 * detection for the huge zero folio").
 */
bool uffdb_is_own(int pagemap_fd, uint64_t hva);

/* Has the process ended, or given up its memory to end? */
bool uffdb_is_gone(int pagemap_fd);

/* Is there a page, and not swapped out? */
bool uffdb_is_present(int pagemap_fd, uint64_t hva);

/* Is the page write-protected by a userfaultfd? */
bool uffdb_is_protected(int pagemap_fd, uint64_t hva);

/* List zero pages that are not write-protected; as uffdb_resident(). */
int uffdb_loose_zero_pages(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out,
			   size_t nr, uint64_t *next);

/* Of this process; an fd or -errno. */
int uffdb_open_own_pagemap(void);

/* As uffdb_resident(), with what is mapped by huge pages apart, where that can be told.
 */
struct uffdb_memory {
	uint64_t start;
	uint64_t len;
	bool huge;
};
int uffdb_sized_memory(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_memory *out,
		       size_t nr, uint64_t *next);

#endif
