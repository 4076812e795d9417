// SPDX-License-Identifier: GPL-2.0-or-later
/* Documentation/admin-guide/mm/pagemap.rst */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "kernel_compat.h"
#include "pagemap.h"
#include "pages.h"
#include "uffdballoon.h"

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_FILE	(1ull << 61) /* of a file, or shared */
#define PAGEMAP_UFFD_WP (1ull << 57)
#define PAGEMAP_OWN	(1ull << 56) /* mapped once, here: PM_MMAP_EXCLUSIVE, Linux 4.2 */
#define SWAP_TYPE	0x1full	     /* of an entry that is swapped out */
#define MARKER		31ull	     /* the last type: SWP_PTE_MARKER of include/linux/swap.h */
#define BATCH		512

/* What holds memory of its own; a marker in the page table looks swapped out as well. */
static const struct pm_scan_arg HOLDS_MEMORY = {
	.category_inverted = PAGE_IS_PFNZERO,
	.category_mask = PAGE_IS_PFNZERO,
	.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
};
/* The same, and whether it is mapped by huge pages. */
static const struct pm_scan_arg SIZED_MEMORY = {
	.category_inverted = PAGE_IS_PFNZERO,
	.category_mask = PAGE_IS_PFNZERO,
	.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.return_mask = PAGE_IS_HUGE,
};
static const struct pm_scan_arg LOOSE_ZERO_PAGE = {
	.category_mask = PAGE_IS_PFNZERO | PAGE_IS_PRESENT | PAGE_IS_WRITTEN,
	.return_mask = PAGE_IS_PRESENT,
};

/* Find stretches in @regions; @nr of them at most. */
static int scan_regions(int fd, struct pm_scan_arg arg, uint64_t start, uint64_t end,
			struct page_region *regions, size_t nr, uint64_t *next)
{
	int found;

	arg.size = sizeof(arg);
	arg.start = start;
	arg.end = end;
	arg.vec = (uintptr_t)regions;
	arg.vec_len = nr;
	found = ioctl(fd, PAGEMAP_SCAN, &arg);
	if (found < 0)
		return -errno;
	*next = arg.walk_end;
	return found;
}

static int scan(int fd, struct pm_scan_arg arg, uint64_t start, uint64_t end,
		struct uffdb_range *out, size_t nr, uint64_t *next)
{
	struct page_region regions[BATCH];
	int found = scan_regions(fd, arg, start, end, regions, nr < BATCH ? nr : BATCH, next);

	for (int i = 0; i < found; i++)
		out[i] = (struct uffdb_range){regions[i].start, regions[i].end - regions[i].start};
	return found;
}

/*
 * A page that was write-protected and is gone leaves a marker in the page table of a file's
 * memory: no memory, and its next touch is one of a missing page. Of hugetlbfs pagemap tells
 * nothing but that it is there or not.
 */
static bool is_memory(uint64_t entry)
{
	return entry & PAGEMAP_PRESENT ||
	       (entry & PAGEMAP_SWAPPED && (entry & SWAP_TYPE) != MARKER);
}

static int add_range(struct uffdb_range *out, int found, size_t nr, uint64_t start, uint64_t len)
{
	if (found && out[found - 1].start + out[found - 1].len == start) {
		out[found - 1].len += len;
		return found;
	}
	if ((size_t)found == nr)
		return -ENOBUFS;
	out[found] = (struct uffdb_range){start, len};
	return found + 1;
}

/* Add what is memory in [*next, end), and move *next on: to its end, unless there is no room. */
static int add_entries(int fd, uint64_t *next, uint64_t end, struct uffdb_range *out, int found,
		       size_t nr)
{
	uint64_t entries[BATCH];

	while (*next < end) {
		size_t want = (end - *next) / UFFDB_PAGE;
		ssize_t got;

		want = (want < BATCH ? want : BATCH) * sizeof(*entries);
		got = pread(fd, entries, want, (off_t)(*next / UFFDB_PAGE * sizeof(*entries)));
		if (got < 0)
			return -errno;
		if (!got)
			break;
		for (size_t i = 0; i < (size_t)got / sizeof(*entries); i++, *next += UFFDB_PAGE) {
			int more;

			if (!is_memory(entries[i]))
				continue;
			more = add_range(out, found, nr, *next, UFFDB_PAGE);
			if (more < 0)
				return found;
			found = more;
		}
	}
	*next = end;
	return found;
}

/* As scan() of HOLDS_MEMORY, without markers. */
static int scan_memory(int fd, uint64_t start, uint64_t end, struct uffdb_range *out, size_t nr,
		       uint64_t *next)
{
	struct page_region regions[BATCH];
	int seen =
		scan_regions(fd, HOLDS_MEMORY, start, end, regions, nr < BATCH ? nr : BATCH, next);
	int found = 0;

	if (seen < 0)
		return seen;
	for (int i = 0; i < seen; i++) {
		uint64_t at = regions[i].start;

		if (regions[i].categories & PAGE_IS_PRESENT) {
			int more = add_range(out, found, nr, at, regions[i].end - at);

			found = more < 0 ? found : more;
			at = more < 0 ? at : regions[i].end;
		} else {
			found = add_entries(fd, &at, regions[i].end, out, found, nr);
			if (found < 0)
				return found;
		}
		if (at < regions[i].end) {
			*next = at;
			return found;
		}
	}
	return found;
}

static int read_entry(int fd, uint64_t hva, uint64_t *entry)
{
	ssize_t got = pread(fd, entry, sizeof(*entry), (off_t)(hva / UFFDB_PAGE * sizeof(*entry)));

	if (got < 0)
		return -errno;
	return got == sizeof(*entry) ? 0 : -ESRCH; /* its memory is gone */
}

/*
 * As HOLDS_MEMORY, of one page, where there is no PAGEMAP_SCAN (before Linux 6.7): the zero page
 * counts no mappings, and is of no file. Nor does KSM's page count as its own; whoever writes to
 * that gets one.
 */
static int is_own_memory(int fd, uint64_t hva)
{
	uint64_t entry;
	int error = read_entry(fd, hva, &entry);

	if (error)
		return error;
	if (entry & PAGEMAP_PRESENT)
		return !!(entry & (PAGEMAP_FILE | PAGEMAP_OWN));
	return !!(entry & PAGEMAP_SWAPPED);
}

/* What a kernel says that does not know a request: of all pagemap's, or of this one's flags. */
static bool is_unknown(int error)
{
	return error == -ENOTTY || error == -EINVAL;
}

int uffdb_holds_memory(int pagemap_fd, uint64_t hva)
{
	struct uffdb_range found;
	uint64_t next;
	int held = scan(pagemap_fd, HOLDS_MEMORY, hva, hva + UFFDB_PAGE, &found, 1, &next);

	return is_unknown(held) ? is_own_memory(pagemap_fd, hva) : held;
}

int uffdb_loose_zero_pages(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out,
			   size_t nr, uint64_t *next)
{
	return scan(pagemap_fd, LOOSE_ZERO_PAGE, start, end, out, nr, next);
}

static const struct pm_scan_arg SWAPPED_OUT = {
	.category_inverted = PAGE_IS_PRESENT,
	.category_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.return_mask = PAGE_IS_SWAPPED,
};

/* Is any page of it a marker only? True as well when there are too many to be sure. */
static bool has_markers(int pagemap_fd, uint64_t start, uint64_t end)
{
	struct page_region regions[BATCH];
	uint64_t next = start;
	int nr = scan_regions(pagemap_fd, SWAPPED_OUT, start, end, regions, BATCH, &next);

	for (int i = 0; i < nr; i++) {
		struct uffdb_range memory[2];
		uint64_t at = regions[i].start, whole = regions[i].end - at;

		if (add_entries(pagemap_fd, &at, regions[i].end, memory, 0, 2) != 1 ||
		    memory[0].len != whole)
			return true;
	}
	return nr == BATCH;
}

bool uffdb_is_populated(int pagemap_fd, uint64_t start, uint64_t end)
{
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.max_pages = 1,
		/* Pages that are neither present nor swapped out: the first is enough. */
		.category_inverted = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.category_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT,
	};

	return !ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) && !has_markers(pagemap_fd, start, end);
}

bool uffdb_has_memory(int pagemap_fd, uint64_t start, uint64_t end)
{
	struct uffdb_range found;
	uint64_t next;

	return scan(pagemap_fd, HOLDS_MEMORY, start, end, &found, 1, &next) != 0;
}

bool uffdb_is_own(int pagemap_fd, uint64_t hva)
{
	return is_own_memory(pagemap_fd, hva) > 0;
}

bool uffdb_is_gone(int pagemap_fd)
{
	uint64_t entry;

	/* Any address will do: without an mm there is nothing to be read (fs/proc/task_mmu.c). */
	return pagemap_fd >= 0 && !pread(pagemap_fd, &entry, sizeof(entry), 0);
}

static bool has_flag(int pagemap_fd, uint64_t hva, uint64_t flag)
{
	uint64_t entry;

	return !read_entry(pagemap_fd, hva, &entry) && entry & flag;
}

bool uffdb_is_present(int pagemap_fd, uint64_t hva)
{
	return has_flag(pagemap_fd, hva, PAGEMAP_PRESENT);
}

bool uffdb_is_protected(int pagemap_fd, uint64_t hva)
{
	return has_flag(pagemap_fd, hva, PAGEMAP_UFFD_WP);
}

int uffdb_open_own_pagemap(void)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int uffdb_resident(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out, size_t nr,
		   uint64_t *next)
{
	int found = scan_memory(pagemap_fd, start, end, out, nr, next);

	if (is_unknown(found)) {
		*next = start;
		return add_entries(pagemap_fd, next, end, out, 0, nr);
	}
	return found;
}

int uffdb_sized_memory(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_memory *out,
		       size_t nr, uint64_t *next)
{
	struct page_region regions[BATCH];
	struct uffdb_range ranges[BATCH];
	int found;

	if (nr > BATCH)
		nr = BATCH;
	found = scan_regions(pagemap_fd, SIZED_MEMORY, start, end, regions, nr, next);
	for (int i = 0; i < found; i++)
		out[i] = (struct uffdb_memory){regions[i].start, regions[i].end - regions[i].start,
					       regions[i].categories & PAGE_IS_HUGE};
	if (!is_unknown(found))
		return found;
	*next = start;
	found = add_entries(pagemap_fd, next, end, ranges, 0, nr);
	for (int i = 0; i < found; i++)
		out[i] = (struct uffdb_memory){ranges[i].start, ranges[i].len, false};
	return found;
}
