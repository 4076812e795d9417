// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

#define WORD_PAGES 64ull

/* One bit a page; a mapping that commits memory only where it is written. */
struct bitmap {
	_Atomic uint64_t *words;
	size_t bytes;
};

struct uffdb_ledger {
	_Atomic uint64_t pages;
	size_t nr;
	struct uffdb_block *blocks;
	struct bitmap *bitmaps;
};

static int by_address(const void *a, const void *b)
{
	const struct uffdb_block *left = a, *right = b;

	return left->hva < right->hva ? -1 : left->hva > right->hva;
}

static int map_bitmap(struct bitmap *bitmap, uint64_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *words;

	bitmap->bytes = (size / UFFDB_PAGE + WORD_PAGES - 1) / WORD_PAGES * sizeof(uint64_t);
	words = mmap(NULL, bitmap->bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (words == MAP_FAILED)
		return -errno;
	bitmap->words = words;
	return 0;
}

int uffdb_ledger_create(const struct uffdb_block *blocks, size_t nr, struct uffdb_ledger **out)
{
	struct uffdb_ledger *ledger = calloc(1, sizeof(*ledger));
	int error = 0;

	if (!ledger)
		return -ENOMEM;
	ledger->blocks = calloc(nr ? nr : 1, sizeof(*ledger->blocks));
	ledger->bitmaps = calloc(nr ? nr : 1, sizeof(*ledger->bitmaps));
	if (!ledger->blocks || !ledger->bitmaps)
		error = -ENOMEM;
	for (size_t i = 0; !error && i < nr; i++) {
		ledger->blocks[i] = blocks[i];
		if (!blocks[i].size || blocks[i].hva % UFFDB_PAGE || blocks[i].size % UFFDB_PAGE)
			error = -EINVAL;
	}
	if (!error)
		qsort(ledger->blocks, nr, sizeof(*ledger->blocks), by_address);
	for (size_t i = 0; !error && i < nr; i++) {
		if (i &&
		    ledger->blocks[i - 1].hva + ledger->blocks[i - 1].size > ledger->blocks[i].hva)
			error = -EINVAL;
		else
			error = map_bitmap(&ledger->bitmaps[i], ledger->blocks[i].size);
		ledger->nr = i + 1;
	}
	if (error) {
		uffdb_ledger_destroy(ledger);
		return error;
	}
	*out = ledger;
	return 0;
}

void uffdb_ledger_destroy(struct uffdb_ledger *ledger)
{
	if (!ledger)
		return;
	for (size_t i = 0; i < ledger->nr; i++)
		if (ledger->bitmaps[i].words)
			munmap((void *)ledger->bitmaps[i].words, ledger->bitmaps[i].bytes);
	free(ledger->bitmaps);
	free(ledger->blocks);
	free(ledger);
}

/* Index of the block that holds @hva, or -1. */
static ssize_t find(const struct uffdb_ledger *ledger, uint64_t hva)
{
	size_t low = 0, high = ledger->nr;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (ledger->blocks[middle].hva + ledger->blocks[middle].size <= hva)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == ledger->nr || hva < ledger->blocks[low].hva)
		return -1;
	return (ssize_t)low;
}

const struct uffdb_block *uffdb_ledger_block(const struct uffdb_ledger *ledger, uint64_t hva)
{
	ssize_t index = find(ledger, hva);

	return index < 0 ? NULL : &ledger->blocks[index];
}

const struct uffdb_block *uffdb_ledger_blocks(const struct uffdb_ledger *ledger, size_t *nr)
{
	*nr = ledger->nr;
	return ledger->blocks;
}

/* Which bits of word @word lie in pages [first, last)? */
static uint64_t word_mask(uint64_t word, uint64_t first, uint64_t last)
{
	uint64_t base = word * WORD_PAGES, mask = ~0ull;

	if (first > base)
		mask &= ~0ull << (first - base);
	if (last < base + WORD_PAGES)
		mask &= ~0ull >> (base + WORD_PAGES - last);
	return mask;
}

static int64_t change(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len, bool set)
{
	ssize_t index = find(ledger, hva);
	const struct uffdb_block *block;
	uint64_t first, last, changed = 0;

	if (index < 0 || !len)
		return -ENOENT;
	block = &ledger->blocks[index];
	if (len > block->hva + block->size - hva || hva % UFFDB_PAGE || len % UFFDB_PAGE)
		return -ENOENT;
	first = (hva - block->hva) / UFFDB_PAGE;
	last = first + len / UFFDB_PAGE;
	for (uint64_t word = first / WORD_PAGES; word * WORD_PAGES < last; word++) {
		_Atomic uint64_t *bits = &ledger->bitmaps[index].words[word];
		uint64_t mask = word_mask(word, first, last), was;

		/* Clearing what was never set would commit memory for nothing. */
		if (!set && !(atomic_load_explicit(bits, memory_order_relaxed) & mask))
			continue;
		was = set ? atomic_fetch_or(bits, mask) : atomic_fetch_and(bits, ~mask);
		changed += (uint64_t)__builtin_popcountll((set ? ~was : was) & mask);
	}
	if (set)
		atomic_fetch_add(&ledger->pages, changed);
	else
		atomic_fetch_sub(&ledger->pages, changed);
	return (int64_t)changed;
}

int64_t uffdb_ledger_set(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len)
{
	return change(ledger, hva, len, true);
}

int64_t uffdb_ledger_clear(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len)
{
	return change(ledger, hva, len, false);
}

int uffdb_ledger_test(const struct uffdb_ledger *ledger, uint64_t hva)
{
	ssize_t index = find(ledger, hva);
	uint64_t page;

	if (index < 0)
		return -ENOENT;
	page = (hva - ledger->blocks[index].hva) / UFFDB_PAGE;
	return (int)(ledger->bitmaps[index].words[page / WORD_PAGES] >> (page % WORD_PAGES) & 1);
}

uint64_t uffdb_ledger_pages(const struct uffdb_ledger *ledger)
{
	return atomic_load(&ledger->pages);
}

/* The first page in [page, last) whose bit is @value, or @last. */
static uint64_t seek(const struct bitmap *bitmap, uint64_t page, uint64_t last, bool value)
{
	while (page < last) {
		uint64_t word = page / WORD_PAGES, bits;

		bits = atomic_load_explicit(&bitmap->words[word], memory_order_relaxed);
		bits = (value ? bits : ~bits) & word_mask(word, page, last);
		if (bits)
			return word * WORD_PAGES + (uint64_t)__builtin_ctzll(bits);
		page = (word + 1) * WORD_PAGES;
	}
	return last;
}

int uffdb_ledger_next(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t end,
		      struct uffdb_range *out)
{
	ssize_t index = find(ledger, hva);
	const struct uffdb_block *block;
	uint64_t first, last;

	if (index < 0)
		return -ENOENT;
	block = &ledger->blocks[index];
	if (end > block->hva + block->size)
		end = block->hva + block->size;
	last = (end - block->hva) / UFFDB_PAGE;
	first = seek(&ledger->bitmaps[index], (hva - block->hva) / UFFDB_PAGE, last, true);
	if (first >= last)
		return 0;
	last = seek(&ledger->bitmaps[index], first, last, false);
	*out = (struct uffdb_range){block->hva + first * UFFDB_PAGE, (last - first) * UFFDB_PAGE};
	return 1;
}
