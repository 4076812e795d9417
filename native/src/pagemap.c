// SPDX-License-Identifier: GPL-2.0-or-later
/* Documentation/admin-guide/mm/pagemap.rst */
#include <errno.h>
#include <unistd.h>

#include "internal.h"
#include "kernel_compat.h"

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_UFFD_WP (1ull << 57)
#define BATCH		512

static int scan(int fd, uint64_t start, uint64_t end, struct page_region *regions, size_t nr,
		uint64_t *next)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)regions,
		.vec_len = nr,
		.category_inverted = PAGE_IS_PFNZERO,
		.category_mask = PAGE_IS_PFNZERO,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT,
	};
	int found = ioctl(fd, PAGEMAP_SCAN, &arg);

	if (found < 0)
		return -errno;
	*next = arg.walk_end;
	return found;
}

int uffdb_holds_memory(int pagemap_fd, uint64_t hva)
{
	struct page_region region;
	uint64_t next;

	return scan(pagemap_fd, hva, hva + UFFDB_PAGE, &region, 1, &next);
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

	return !ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
}

bool uffdb_is_gone(int pagemap_fd)
{
	uint64_t entry;

	/* Any address will do: without an mm there is nothing to be read (fs/proc/task_mmu.c). */
	return pagemap_fd >= 0 && !pread(pagemap_fd, &entry, sizeof(entry), 0);
}

bool uffdb_is_protected(int pagemap_fd, uint64_t hva)
{
	off_t at = (off_t)(hva / UFFDB_PAGE * sizeof(uint64_t));
	uint64_t entry;

	return pread(pagemap_fd, &entry, sizeof(entry), at) == sizeof(entry) &&
	       entry & PAGEMAP_UFFD_WP;
}

static int append(struct uffdb_range *out, int found, size_t nr, uint64_t start, uint64_t len)
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

static int read_entries(int fd, uint64_t start, uint64_t end, struct uffdb_range *out, size_t nr,
			uint64_t *next)
{
	uint64_t entries[BATCH];
	int found = 0;

	for (*next = start; *next < end;) {
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

			if (!(entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)))
				continue;
			more = append(out, found, nr, *next, UFFDB_PAGE);
			if (more < 0)
				return found;
			found = more;
		}
	}
	*next = end;
	return found;
}

int uffdb_resident(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out, size_t nr,
		   uint64_t *next)
{
	struct page_region regions[BATCH];
	int found = scan(pagemap_fd, start, end, regions, nr < BATCH ? nr : BATCH, next);

	if (found == -ENOTTY || found == -EINVAL)
		return read_entries(pagemap_fd, start, end, out, nr, next);
	for (int i = 0; i < found; i++)
		out[i] = (struct uffdb_range){regions[i].start, regions[i].end - regions[i].start};
	return found;
}
