// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap.h"
#include "ledger.h"
#include "pages.h"
#include "uffdballoon.h"
#include "unit_counts.h"

#define MAGIC	     0x3572646c62646675ull /* of this layout */
#define UNIT_PAGES   (UFFDB_HUGE / UFFDB_PAGE)
#define SHARED_MOST  64 /* blocks whose ledger can be shared */
#define SHARED_PAGES 1	/* before the caller's note and the bitmaps */

/* What a file begins with that holds a ledger. */
struct shared {
	uint64_t magic, nr;
	struct uffdb_contract contract;
	struct uffdb_range inflating;
	struct uffdb_monitor_notes notes;
	struct {
		uint64_t hva, size;
	} blocks[SHARED_MOST];
};
_Static_assert(sizeof(struct shared) <= SHARED_PAGES * UFFDB_PAGE, "the head is a page");
_Static_assert(UFFDB_NOTE_OFFSET == SHARED_PAGES * UFFDB_PAGE, "the note comes behind it");
_Static_assert(UFFDB_NOTE_BYTES % UFFDB_PAGE == 0, "and the bitmaps behind that");

/* One bit a page; a mapping that commits memory only where it is written. */
struct bitmap {
	_Atomic uint64_t *words;
	size_t bytes;
	_Atomic uint64_t pages; /* of a RAM block: that are ballooned */
};

struct uffdb_ledger {
	_Atomic uint64_t pages;
	_Atomic uint64_t epoch; /* how often pages have left it */
	size_t nr;
	struct uffdb_block *blocks;
	struct bitmap *bitmaps;
	struct bitmap *marks; /* one bit a 2 MiB block: a page of it was set since it was taken */
	struct uffdb_unit_counts *units; /* how much of each 2 MiB block is ballooned */
	_Atomic bool any_marked;
	struct shared *shared; /* of one that lies in a file, or NULL */
};

static int by_address(const void *a, const void *b)
{
	const struct uffdb_block *left = a, *right = b;

	return left->hva < right->hva ? -1 : left->hva > right->hva;
}

static uint64_t bitmap_bytes(uint64_t bits)
{
	return (bits + 63) / 64 * sizeof(uint64_t);
}

/* In the file @fd, or with -1 in memory of our own. */
static int map_bitmap(struct bitmap *bitmap, uint64_t bits, int fd, uint64_t offset)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
	void *words;

	bitmap->bytes = bitmap_bytes(bits);
	words = mmap(NULL, bitmap->bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
	if (words == MAP_FAILED)
		return -errno;
	bitmap->words = words;
	return 0;
}

static void unmap_bitmap(struct bitmap *bitmap)
{
	if (bitmap->words)
		munmap((void *)bitmap->words, bitmap->bytes);
}

/* Pages of a RAM block, [first, last), that lie in one 2 MiB block, @unit. */
struct stretch {
	uint64_t first, last, unit;
};

/* What is of the 2 MiB block that page @first is in, at most up to page @last. */
static struct stretch stretch_at(const struct uffdb_block *block, uint64_t first, uint64_t last)
{
	uint64_t ahead = block->hva % UFFDB_HUGE / UFFDB_PAGE;
	uint64_t unit = (ahead + first) / UNIT_PAGES, end = (unit + 1) * UNIT_PAGES - ahead;

	return (struct stretch){first, end < last ? end : last, unit};
}

/* All of the RAM block that is in the same 2 MiB block. */
static uint64_t unit_size(const struct uffdb_block *block, uint64_t unit)
{
	uint64_t ahead = block->hva % UFFDB_HUGE / UFFDB_PAGE;
	uint64_t end = ahead + block->size / UFFDB_PAGE;
	uint64_t first = unit ? unit * UNIT_PAGES : ahead;
	uint64_t last = (unit + 1) * UNIT_PAGES;

	return (last < end ? last : end) - first;
}

static uint64_t count_bits(const struct bitmap *bitmap, const struct stretch *of)
{
	uint64_t count = 0;

	for (uint64_t word = of->first / UFFDB_WORD_BITS; word * UFFDB_WORD_BITS < of->last;
	     word++) {
		uint64_t mask = uffdb_word_mask(word, of->first, of->last);

		count += (uint64_t)__builtin_popcountll(uffdb_word(bitmap->words, word) & mask);
	}
	return count;
}

/* Count anew what is ballooned of a RAM block, which nobody changes meanwhile. */
static void recount(struct uffdb_ledger *ledger, size_t index)
{
	const struct uffdb_block *block = &ledger->blocks[index];
	uint64_t pages = block->size / UFFDB_PAGE, all = 0;
	struct stretch at = {0};

	while (at.last < pages) {
		uint64_t count, before, size;

		at = stretch_at(block, at.last, pages);
		size = at.last - at.first;
		count = count_bits(&ledger->bitmaps[index], &at);
		before = uffdb_unit_counts_of(&ledger->units[index], at.unit, size);
		/* What is zero is not written to: it would commit memory. */
		if (count != before)
			uffdb_unit_counts_add(&ledger->units[index], at.unit, size,
					      (int64_t)count - (int64_t)before);
		all += count;
	}
	ledger->pages += all - ledger->bitmaps[index].pages;
	ledger->bitmaps[index].pages = all;
}

static uint64_t shared_bytes(const struct uffdb_block *block)
{
	uint64_t bytes = bitmap_bytes(block->size / UFFDB_PAGE);

	return (bytes + UFFDB_PAGE - 1) / UFFDB_PAGE * UFFDB_PAGE;
}

static void begin_shared(struct uffdb_ledger *ledger)
{
	struct shared *shared = ledger->shared;

	shared->nr = ledger->nr;
	for (size_t i = 0; i < ledger->nr; i++) {
		shared->blocks[i].hva = ledger->blocks[i].hva;
		shared->blocks[i].size = ledger->blocks[i].size;
	}
	shared->magic = MAGIC;
}

static bool is_of_these(const struct uffdb_ledger *ledger)
{
	const struct shared *shared = ledger->shared;

	if (shared->magic != MAGIC || shared->nr != ledger->nr)
		return false;
	for (size_t i = 0; i < ledger->nr; i++)
		if (shared->blocks[i].hva != ledger->blocks[i].hva ||
		    shared->blocks[i].size != ledger->blocks[i].size)
			return false;
	return true;
}

/* Put the bitmaps of an empty ledger into a file, or find them there. */
static int put_in_file(struct uffdb_ledger *ledger, int fd)
{
	uint64_t bytes = UFFDB_NOTE_OFFSET + UFFDB_NOTE_BYTES, at = bytes;
	struct stat status;
	int error = 0;
	void *head;

	if (ledger->nr > SHARED_MOST)
		return -E2BIG;
	for (size_t i = 0; i < ledger->nr; i++)
		bytes += shared_bytes(&ledger->blocks[i]);
	if (fstat(fd, &status) || (!status.st_size && ftruncate(fd, (off_t)bytes)))
		return -errno;
	/* One that is shorter would be a SIGBUS. */
	if (status.st_size && (uint64_t)status.st_size != bytes)
		return -EINVAL;
	head = mmap(NULL, SHARED_PAGES * UFFDB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (head == MAP_FAILED)
		return -errno;
	ledger->shared = head;
	if (status.st_size && !is_of_these(ledger))
		return -EINVAL;
	for (size_t i = 0; !error && i < ledger->nr; i++) {
		const struct uffdb_block *block = &ledger->blocks[i];

		unmap_bitmap(&ledger->bitmaps[i]);
		ledger->bitmaps[i].words = NULL;
		error = map_bitmap(&ledger->bitmaps[i], block->size / UFFDB_PAGE, fd, at);
		at += shared_bytes(block);
		if (!error)
			recount(ledger, i);
	}
	if (!error && !status.st_size)
		begin_shared(ledger);
	return error;
}

int uffdb_ledger_create_in(int fd, const struct uffdb_block *blocks, size_t nr,
			   struct uffdb_ledger **out)
{
	struct uffdb_ledger *ledger;
	int error = uffdb_ledger_create(blocks, nr, &ledger);

	if (error)
		return error;
	error = put_in_file(ledger, fd);
	if (error) {
		uffdb_ledger_destroy(ledger);
		return error;
	}
	*out = ledger;
	return 0;
}

struct uffdb_contract *uffdb_ledger_contract(struct uffdb_ledger *ledger)
{
	return ledger->shared ? &ledger->shared->contract : NULL;
}

void uffdb_ledger_keep_contract(struct uffdb_ledger *ledger, const struct uffdb_contract *contract)
{
	if (ledger->shared)
		ledger->shared->contract = *contract;
}

struct uffdb_range *uffdb_ledger_inflating(struct uffdb_ledger *ledger)
{
	return ledger->shared ? &ledger->shared->inflating : NULL;
}

struct uffdb_monitor_notes *uffdb_ledger_notes(struct uffdb_ledger *ledger)
{
	return ledger->shared ? &ledger->shared->notes : NULL;
}

int uffdb_ledger_map_notes(int fd, struct uffdb_monitor_notes **out)
{
	const size_t bytes = SHARED_PAGES * UFFDB_PAGE;
	struct shared *head;
	struct stat status;

	if (fstat(fd, &status))
		return -errno;
	if ((uint64_t)status.st_size < bytes)
		return -EINVAL;
	head = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (head == MAP_FAILED)
		return -errno;
	if (head->magic != MAGIC) {
		munmap(head, bytes);
		return -EINVAL;
	}
	*out = &head->notes;
	return 0;
}

void uffdb_ledger_unmap_notes(struct uffdb_monitor_notes *notes)
{
	munmap((char *)notes - offsetof(struct shared, notes), SHARED_PAGES * UFFDB_PAGE);
}

int uffdb_ledger_create(const struct uffdb_block *blocks, size_t nr, struct uffdb_ledger **out)
{
	struct uffdb_ledger *ledger = calloc(1, sizeof(*ledger));
	int error = 0;

	if (!ledger)
		return -ENOMEM;
	ledger->blocks = calloc(nr ? nr : 1, sizeof(*ledger->blocks));
	ledger->bitmaps = calloc(nr ? nr : 1, sizeof(*ledger->bitmaps));
	ledger->marks = calloc(nr ? nr : 1, sizeof(*ledger->marks));
	ledger->units = calloc(nr ? nr : 1, sizeof(*ledger->units));
	if (!ledger->blocks || !ledger->bitmaps || !ledger->marks || !ledger->units)
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
			error = map_bitmap(&ledger->bitmaps[i], ledger->blocks[i].size / UFFDB_PAGE,
					   -1, 0);
		if (!error)
			error = map_bitmap(&ledger->marks[i], uffdb_block_units(&ledger->blocks[i]),
					   -1, 0);
		if (!error)
			error = uffdb_unit_counts_map(&ledger->units[i],
						      uffdb_block_units(&ledger->blocks[i]));
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
	for (size_t i = 0; i < ledger->nr; i++) {
		unmap_bitmap(&ledger->bitmaps[i]);
		unmap_bitmap(&ledger->marks[i]);
		uffdb_unit_counts_unmap(&ledger->units[i]);
	}
	if (ledger->shared)
		munmap(ledger->shared, SHARED_PAGES * UFFDB_PAGE);
	free(ledger->units);
	free(ledger->marks);
	free(ledger->bitmaps);
	free(ledger->blocks);
	free(ledger);
}

/* Index of the block that holds @hva, or -1. */
static ssize_t find_block(const struct uffdb_ledger *ledger, uint64_t hva)
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
	ssize_t index = find_block(ledger, hva);

	return index < 0 ? NULL : &ledger->blocks[index];
}

const struct uffdb_block *uffdb_ledger_blocks(const struct uffdb_ledger *ledger, size_t *nr)
{
	*nr = ledger->nr;
	return ledger->blocks;
}

int uffdb_ledger_create_of_pages(const struct uffdb_ledger *ledger, struct uffdb_ledger **out)
{
	struct uffdb_block *blocks = calloc(ledger->nr + 1, sizeof(*blocks));
	int error;

	if (!blocks)
		return -ENOMEM;
	for (size_t i = 0; i < ledger->nr; i++) {
		blocks[i] = ledger->blocks[i];
		blocks[i].flags = 0;
	}
	error = uffdb_ledger_create(blocks, ledger->nr, out);
	free(blocks);
	return error;
}

uint64_t uffdb_block_page(const struct uffdb_block *block)
{
	return block->flags & UFFDB_BLOCK_HUGETLB ? UFFDB_HUGE : UFFDB_PAGE;
}

int uffdb_ledger_check(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t len)
{
	const struct uffdb_block *block = uffdb_ledger_block(ledger, hva);

	if (!block || !len || len > block->hva + block->size - hva)
		return -ENOENT;
	return hva % uffdb_block_page(block) || len % uffdb_block_page(block) ? -EINVAL : 0;
}

static void mark_unit(struct uffdb_ledger *ledger, size_t index, uint64_t unit)
{
	_Atomic uint64_t *bits = &ledger->marks[index].words[unit / 64];

	/* Most pages are neighbours of one that was set just before. */
	if (uffdb_bit(ledger->marks[index].words, unit))
		return;
	atomic_fetch_or(bits, 1ull << (unit % 64));
	atomic_store(&ledger->any_marked, true);
}

/* Return: how many bits changed. */
static uint64_t change_bits(struct bitmap *bitmap, const struct stretch *of, bool set)
{
	uint64_t changed = 0;

	for (uint64_t word = of->first / UFFDB_WORD_BITS; word * UFFDB_WORD_BITS < of->last;
	     word++) {
		_Atomic uint64_t *bits = &bitmap->words[word];
		uint64_t mask = uffdb_word_mask(word, of->first, of->last), was;

		/* Clearing what was never set would commit memory for nothing. */
		if (!set && !(uffdb_word(bits, 0) & mask))
			continue;
		was = set ? atomic_fetch_or(bits, mask) : atomic_fetch_and(bits, ~mask);
		changed += (uint64_t)__builtin_popcountll(mask & (set ? ~was : was));
	}
	return changed;
}

static int64_t change_pages(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len, bool set)
{
	ssize_t index = find_block(ledger, hva);
	const struct uffdb_block *block;
	struct stretch at = {0};
	uint64_t end, all = 0;

	if (index < 0 || !len)
		return -ENOENT;
	block = &ledger->blocks[index];
	if (len > block->hva + block->size - hva || hva % UFFDB_PAGE || len % UFFDB_PAGE)
		return -ENOENT;
	at.last = (hva - block->hva) / UFFDB_PAGE;
	end = at.last + len / UFFDB_PAGE;
	while (at.last < end) {
		uint64_t changed;

		at = stretch_at(block, at.last, end);
		changed = change_bits(&ledger->bitmaps[index], &at, set);
		if (!changed)
			continue;
		uffdb_unit_counts_add(&ledger->units[index], at.unit, unit_size(block, at.unit),
				      set ? (int64_t)changed : -(int64_t)changed);
		if (set)
			mark_unit(ledger, (size_t)index, at.unit);
		all += changed;
	}
	if (set) {
		atomic_fetch_add(&ledger->pages, all);
		atomic_fetch_add(&ledger->bitmaps[index].pages, all);
	} else {
		atomic_fetch_sub(&ledger->pages, all);
		atomic_fetch_sub(&ledger->bitmaps[index].pages, all);
		if (all)
			atomic_fetch_add(&ledger->epoch, 1);
	}
	return (int64_t)all;
}

int64_t uffdb_ledger_set(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len)
{
	return change_pages(ledger, hva, len, true);
}

int64_t uffdb_ledger_clear(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len)
{
	return change_pages(ledger, hva, len, false);
}

int uffdb_ledger_test(const struct uffdb_ledger *ledger, uint64_t hva)
{
	ssize_t index = find_block(ledger, hva);
	uint64_t page;

	if (index < 0)
		return -ENOENT;
	page = (hva - ledger->blocks[index].hva) / UFFDB_PAGE;
	return (int)(ledger->bitmaps[index].words[page / UFFDB_WORD_BITS] >>
			     (page % UFFDB_WORD_BITS) &
		     1);
}

uint64_t uffdb_ledger_epoch(const struct uffdb_ledger *ledger)
{
	return atomic_load(&ledger->epoch) + 1;
}

uint64_t uffdb_ledger_pages(const struct uffdb_ledger *ledger)
{
	return atomic_load(&ledger->pages);
}

uint64_t uffdb_ledger_node_pages(const struct uffdb_ledger *ledger, uint32_t node)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < ledger->nr; i++)
		if (ledger->blocks[i].node == node)
			pages += atomic_load(&ledger->bitmaps[i].pages);
	return pages;
}

uint64_t uffdb_ledger_count(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t len)
{
	ssize_t index = find_block(ledger, hva);
	const struct uffdb_block *block;
	struct stretch at = {0};
	uint64_t end, count = 0;

	if (index < 0)
		return 0;
	block = &ledger->blocks[index];
	if (len > block->hva + block->size - hva)
		len = block->hva + block->size - hva;
	if (len == block->size)
		return atomic_load(&ledger->bitmaps[index].pages);
	at.last = (hva - block->hva) / UFFDB_PAGE;
	end = at.last + len / UFFDB_PAGE;
	while (at.last < end) {
		uint64_t size;

		at = stretch_at(block, at.last, end);
		size = at.last - at.first;
		count += size == unit_size(block, at.unit)
				 ? uffdb_unit_counts_of(&ledger->units[index], at.unit, size)
				 : count_bits(&ledger->bitmaps[index], &at);
	}
	return count;
}

int uffdb_ledger_tally(const struct uffdb_ledger *ledger, uint64_t hva, struct uffdb_tally *out)
{
	ssize_t index = find_block(ledger, hva);

	if (index < 0)
		return -ENOENT;
	uffdb_unit_counts_tally(&ledger->units[index], out);
	return 0;
}

/* Are the pages [hva, end), of one RAM block, the same in both? */
static bool is_same(const struct uffdb_ledger *a, const struct uffdb_ledger *b, uint64_t hva,
		    uint64_t end)
{
	ssize_t index = find_block(a, hva);
	uint64_t start, first, last;

	if (index < 0)
		return true;
	start = a->blocks[index].hva;
	first = (hva - start) / UFFDB_PAGE;
	last = (end - start) / UFFDB_PAGE;
	for (uint64_t word = first / UFFDB_WORD_BITS; word * UFFDB_WORD_BITS < last; word++) {
		uint64_t left = uffdb_word(a->bitmaps[index].words, word);
		uint64_t right = uffdb_word(b->bitmaps[index].words, word);

		if ((left ^ right) & uffdb_word_mask(word, first, last))
			return false;
	}
	return true;
}

static bool is_in_part(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t end)
{
	uint64_t count = uffdb_ledger_count(ledger, hva, end - hva);

	return count && count < (end - hva) / UFFDB_PAGE;
}

/* Where the aligned stretch of @unit bytes ends that @hva is in, at most at @end. */
static uint64_t end_of_unit(uint64_t hva, uint64_t unit, uint64_t end)
{
	uint64_t next = (hva / unit + 1) * unit;

	return next < end ? next : end;
}

uint64_t uffdb_ledger_fine(const struct uffdb_ledger *ledger, const struct uffdb_ledger *before,
			   const struct uffdb_range *of, uint32_t order)
{
	const uint64_t end = of->start + of->len, unit = UFFDB_PAGE << order;
	uint64_t found = 0;

	/* No page is ballooned in part. */
	if (!order)
		return 0;
	for (uint64_t hva = of->start, next; hva < end; hva = next) {
		bool fine = false;

		next = end_of_unit(hva, UFFDB_HUGE, end);
		if (!is_in_part(ledger, hva, next))
			continue;
		for (uint64_t at = hva, stop; !fine && at < next; at = stop) {
			stop = end_of_unit(at, unit, next);
			fine = is_in_part(ledger, at, stop);
		}
		found += fine && (!before || is_same(ledger, before, hva, next));
	}
	return found;
}

uint64_t uffdb_block_units(const struct uffdb_block *block)
{
	return (block->hva + block->size - 1) / UFFDB_HUGE - block->hva / UFFDB_HUGE + 1;
}

void uffdb_ledger_mark(struct uffdb_ledger *ledger, const struct uffdb_range *range)
{
	ssize_t index = find_block(ledger, range->start);
	const struct uffdb_block *block;
	struct stretch at = {0};
	uint64_t end;

	if (index < 0)
		return;
	block = &ledger->blocks[index];
	at.last = (range->start - block->hva) / UFFDB_PAGE;
	end = at.last + range->len / UFFDB_PAGE;
	while (at.last < end) {
		at = stretch_at(block, at.last, end);
		mark_unit(ledger, (size_t)index, at.unit);
	}
}

bool uffdb_ledger_is_marked(const struct uffdb_ledger *ledger)
{
	return atomic_load_explicit(&ledger->any_marked, memory_order_relaxed);
}

bool uffdb_ledger_begin_marks(struct uffdb_ledger *ledger)
{
	return uffdb_ledger_is_marked(ledger) && atomic_exchange(&ledger->any_marked, false);
}

uint64_t uffdb_ledger_take_marks(struct uffdb_ledger *ledger, size_t index, uint64_t word)
{
	_Atomic uint64_t *bits = &ledger->marks[index].words[word];

	/* The mapping has no memory where nothing was ever marked. */
	return uffdb_word(bits, 0) ? atomic_exchange(bits, 0) : 0;
}

static void copy_bitmap(const struct bitmap *from, struct bitmap *to)
{
	for (size_t word = 0; word < from->bytes / sizeof(uint64_t); word++) {
		uint64_t bits = uffdb_word(from->words, word);

		/* What is zero is not written to: it would commit memory. */
		if (bits != uffdb_word(to->words, word))
			atomic_store_explicit(&to->words[word], bits, memory_order_relaxed);
	}
}

void uffdb_ledger_copy(const struct uffdb_ledger *from, struct uffdb_ledger *to)
{
	for (size_t i = 0; i < from->nr; i++) {
		copy_bitmap(&from->bitmaps[i], &to->bitmaps[i]);
		/* The counters of one that changes meanwhile are of another moment. */
		recount(to, i);
	}
}

int uffdb_ledger_next(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t end,
		      struct uffdb_range *out)
{
	ssize_t index = find_block(ledger, hva);
	const struct uffdb_block *block;
	uint64_t first, last;

	if (index < 0)
		return -ENOENT;
	if (end <= hva)
		return 0;
	block = &ledger->blocks[index];
	if (end > block->hva + block->size)
		end = block->hva + block->size;
	last = (end - block->hva) / UFFDB_PAGE;
	first = uffdb_seek_bit(ledger->bitmaps[index].words, (hva - block->hva) / UFFDB_PAGE, last,
			       true);
	if (first >= last)
		return 0;
	last = uffdb_seek_bit(ledger->bitmaps[index].words, first, last, false);
	*out = (struct uffdb_range){block->hva + first * UFFDB_PAGE, (last - first) * UFFDB_PAGE};
	return 1;
}
