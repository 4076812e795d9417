// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which 2 MiB blocks of the target are registered. A window is a run of them:
 * the kernel merges the VMAs of neighbours.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct block_windows {
	const struct uffdb_block *block;
	uint32_t modes;
	uint64_t first; /* number of the first 2 MiB block of the address space that it reaches */
	uint64_t count;
	uint8_t *armed;
	_Atomic uint8_t *changed; /* lost a ballooned page to a grant */
};

struct uffdb_windows {
	const struct uffdb_ledger *ledger;
	int uffd;
	size_t nr;
	struct block_windows *blocks;
	_Atomic uint64_t windows;
	_Atomic uint64_t bytes;
	_Atomic bool changed;
};

int uffdb_windows_create(const struct uffdb_ledger *ledger, int uffd, uint32_t modes,
			 uint32_t shared_modes, struct uffdb_windows **out)
{
	struct uffdb_windows *windows = calloc(1, sizeof(*windows));
	const struct uffdb_block *blocks;

	if (!windows)
		return -ENOMEM;
	windows->ledger = ledger;
	windows->uffd = uffd;
	blocks = uffdb_ledger_blocks(ledger, &windows->nr);
	windows->blocks = calloc(windows->nr ? windows->nr : 1, sizeof(*windows->blocks));
	if (!windows->blocks)
		goto no_memory;
	for (size_t i = 0; i < windows->nr; i++) {
		struct block_windows *of = &windows->blocks[i];
		uint32_t special = UFFDB_BLOCK_SHARED | UFFDB_BLOCK_HUGETLB;

		of->block = &blocks[i];
		of->modes = blocks[i].flags & special ? shared_modes : modes;
		of->first = blocks[i].hva / UFFDB_HUGE;
		of->count = (blocks[i].hva + blocks[i].size - 1) / UFFDB_HUGE - of->first + 1;
		of->armed = calloc(of->count, 1);
		of->changed = calloc(of->count, 1);
		if (!of->armed || !of->changed)
			goto no_memory;
	}
	*out = windows;
	return 0;

no_memory:
	uffdb_windows_destroy(windows);
	return -ENOMEM;
}

void uffdb_windows_destroy(struct uffdb_windows *windows)
{
	if (!windows)
		return;
	for (size_t i = 0; windows->blocks && i < windows->nr; i++) {
		free(windows->blocks[i].armed);
		free((void *)windows->blocks[i].changed);
	}
	free(windows->blocks);
	free(windows);
}

static struct block_windows *of_address(struct uffdb_windows *windows, uint64_t hva)
{
	const struct uffdb_block *block = uffdb_ledger_block(windows->ledger, hva);

	for (size_t i = 0; block && i < windows->nr; i++)
		if (windows->blocks[i].block == block)
			return &windows->blocks[i];
	return NULL;
}

/* Addresses of armed-array entries [first, last), clipped to the RAM block. */
static struct uffdb_range extent(const struct block_windows *of, uint64_t first, uint64_t last)
{
	uint64_t start = (of->first + first) * UFFDB_HUGE;
	uint64_t end = (of->first + last) * UFFDB_HUGE;

	if (start < of->block->hva)
		start = of->block->hva;
	if (end > of->block->hva + of->block->size)
		end = of->block->hva + of->block->size;
	return (struct uffdb_range){start, end - start};
}

/* Note entries [first, last) as @value and keep the counts of windows and bytes. */
static void note(struct uffdb_windows *windows, struct block_windows *of, uint64_t first,
		 uint64_t last, bool value)
{
	bool before = first && of->armed[first - 1];
	bool after = last < of->count && of->armed[last];
	int64_t change = 1 - before - after;
	struct uffdb_range range = extent(of, first, last);

	for (uint64_t i = first; i < last; i++)
		of->armed[i] = value;
	if (value) {
		windows->windows += (uint64_t)change;
		windows->bytes += range.len;
	} else {
		windows->windows -= (uint64_t)change;
		windows->bytes -= range.len;
	}
}

int uffdb_windows_arm(struct uffdb_windows *windows, uint64_t hva, uint64_t len)
{
	struct block_windows *of = of_address(windows, hva);
	uint64_t first, last;

	if (!of || !len || len > of->block->hva + of->block->size - hva)
		return -ENOENT;
	last = (hva + len - 1) / UFFDB_HUGE - of->first + 1;
	for (first = hva / UFFDB_HUGE - of->first; first < last;) {
		uint64_t end = first;
		struct uffdb_range range;
		int error;

		while (end < last && of->armed[end] == of->armed[first])
			end++;
		if (!of->armed[first]) {
			range = extent(of, first, end);
			error = uffdb_uffd_register(windows->uffd, range.start, range.len,
						    of->modes);
			if (error) {
				/* What was armed before this stretch holds nothing ballooned. */
				uffdb_windows_trim(windows, hva, len);
				return error;
			}
			note(windows, of, first, end, true);
		}
		first = end;
	}
	return 0;
}

int uffdb_windows_trim(struct uffdb_windows *windows, uint64_t hva, uint64_t len)
{
	struct block_windows *of = of_address(windows, hva);
	uint64_t last;

	if (!of)
		return -ENOENT;
	last = (hva + len - 1) / UFFDB_HUGE - of->first + 1;
	for (uint64_t i = hva / UFFDB_HUGE - of->first; i < last; i++) {
		struct uffdb_range range = extent(of, i, i + 1), found;
		int error;

		if (!of->armed[i] || uffdb_ledger_next(windows->ledger, range.start,
						       range.start + range.len, &found) > 0)
			continue;
		error = uffdb_uffd_unregister(windows->uffd, range.start, range.len);
		/* A target that is gone, or unmapped it, has no window there either. */
		if (error && error != -ESRCH && error != -ENOMEM && error != -EINVAL)
			return error;
		note(windows, of, i, i + 1, false);
	}
	return 0;
}

void uffdb_windows_note_change(struct uffdb_windows *windows, uint64_t hva)
{
	struct block_windows *of = of_address(windows, hva);

	if (!of)
		return;
	atomic_store_explicit(&of->changed[hva / UFFDB_HUGE - of->first], 1, memory_order_relaxed);
	atomic_store_explicit(&windows->changed, true, memory_order_release);
}

int uffdb_windows_tidy(struct uffdb_windows *windows)
{
	uint64_t before = windows->bytes;
	int error = 0;

	if (!atomic_exchange_explicit(&windows->changed, false, memory_order_acquire))
		return 0;
	for (size_t i = 0; i < windows->nr; i++) {
		struct block_windows *of = &windows->blocks[i];

		for (uint64_t j = 0; !error && j < of->count; j++) {
			if (!atomic_exchange_explicit(&of->changed[j], 0, memory_order_relaxed))
				continue;
			error = uffdb_windows_trim(windows, extent(of, j, j + 1).start, UFFDB_PAGE);
		}
	}
	return error ? error : (int)((before - windows->bytes) / UFFDB_HUGE);
}

uint64_t uffdb_windows_count(const struct uffdb_windows *windows)
{
	return windows->windows;
}

uint64_t uffdb_windows_bytes(const struct uffdb_windows *windows)
{
	return windows->bytes;
}
