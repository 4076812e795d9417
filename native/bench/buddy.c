// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A guest's free memory as Linux keeps it: blocks of 2^order pages, merged with their
 * buddies when they become free (mm/page_alloc.c, __free_one_page() and expand()). One zone
 * and one kind of page; no lists of pages for each CPU. Which of several blocks of an order
 * comes first is drawn, where Linux takes the one that became free last.
 */
#include <errno.h>
#include <stdlib.h>

#include "../src/ledger.h"
#include "../src/pages.h"
#include "bench.h"
#include "bitset.h"
#include "random.h"

#define ORDERS	    (UFFDB_MAX_ORDER + 1)
#define BLOCK_PAGES (1ull << UFFDB_MAX_ORDER)

struct uffdb_bench_buddy {
	uint64_t pages;
	struct uffdb_bitset free[ORDERS]; /* by number of the block: first page >> order */
};

int uffdb_bench_buddy_create(uint64_t pages, struct uffdb_bench_buddy **out)
{
	struct uffdb_bench_buddy *buddy;
	int error = 0;

	if (!pages || pages % BLOCK_PAGES)
		return -EINVAL;
	buddy = calloc(1, sizeof(*buddy));
	if (!buddy)
		return -ENOMEM;
	buddy->pages = pages;
	for (int order = 0; !error && order < ORDERS; order++)
		error = uffdb_bitset_init(&buddy->free[order], pages >> order);
	if (error) {
		uffdb_bench_buddy_destroy(buddy);
		return error;
	}
	*out = buddy;
	return 0;
}

void uffdb_bench_buddy_destroy(struct uffdb_bench_buddy *buddy)
{
	if (!buddy)
		return;
	for (int order = 0; order < ORDERS; order++)
		uffdb_bitset_deinit(&buddy->free[order]);
	free(buddy);
}

void uffdb_bench_buddy_blocks(const struct uffdb_bench_buddy *buddy, uint64_t *out)
{
	for (int order = 0; order < ORDERS; order++)
		out[order] = buddy->free[order].count;
}

static uint64_t free_pages(const struct uffdb_bench_buddy *buddy)
{
	uint64_t pages = 0;

	for (int order = 0; order < ORDERS; order++)
		pages += buddy->free[order].count << order;
	return pages;
}

static void free_block(struct uffdb_bench_buddy *buddy, uint64_t number, unsigned int order)
{
	while (order < UFFDB_MAX_ORDER && uffdb_bitset_test(&buddy->free[order], number ^ 1)) {
		uffdb_bitset_remove(&buddy->free[order], number ^ 1);
		number >>= 1;
		order++;
	}
	uffdb_bitset_add(&buddy->free[order], number);
}

/* In the fewest aligned blocks. */
static void free_run(struct uffdb_bench_buddy *buddy, uint64_t first, uint64_t end)
{
	while (first < end) {
		unsigned int order = UFFDB_MAX_ORDER, fits;

		if (first && (unsigned int)__builtin_ctzll(first) < order)
			order = (unsigned int)__builtin_ctzll(first);
		fits = 63 - (unsigned int)__builtin_clzll(end - first);
		if (fits < order)
			order = fits;
		free_block(buddy, first >> order, order);
		first += 1ull << order;
	}
}

static bool has_free_page(const struct uffdb_bench_buddy *buddy, uint64_t first, uint64_t end)
{
	for (int order = 0; order < ORDERS; order++) {
		if (uffdb_bitset_next(&buddy->free[order], first >> order) <= (end - 1) >> order)
			return true;
	}
	return false;
}

int uffdb_bench_buddy_free(struct uffdb_bench_buddy *buddy, uint64_t first, uint64_t pages)
{
	if (!pages || first >= buddy->pages || pages > buddy->pages - first ||
	    has_free_page(buddy, first, first + pages))
		return -EINVAL;
	free_run(buddy, first, first + pages);
	return 0;
}

/* Pieces of 2^@order pages of a block of the largest order are in use or free, each by itself. */
static void scatter_in(struct uffdb_bench_buddy *buddy, uint64_t first, unsigned int order,
		       uint32_t in_use, uint64_t *random)
{
	uint64_t end = first + BLOCK_PAGES, from = first;

	for (uint64_t at = first; at < end; at += 1ull << order) {
		if (uffdb_random_below(random, 1000) >= in_use)
			continue;
		free_run(buddy, from, at);
		from = at + (1ull << order);
	}
	free_run(buddy, from, end);
}

static unsigned int pick_order(uint32_t orders, uint64_t *random)
{
	uint64_t skip = uffdb_random_below(random, (uint64_t)__builtin_popcount(orders));

	while (skip--)
		orders &= orders - 1;
	return (unsigned int)__builtin_ctz(orders);
}

int uffdb_bench_buddy_scatter(struct uffdb_bench_buddy *buddy, uint32_t orders, uint32_t in_use,
			      uint64_t seed)
{
	if (!orders || orders >> ORDERS || in_use > 1000 || free_pages(buddy))
		return -EINVAL;
	for (uint64_t first = 0; first < buddy->pages; first += BLOCK_PAGES)
		scatter_in(buddy, first, pick_order(orders, &seed), in_use, &seed);
	return 0;
}

/* Take a block out, @pages of it at most from its first; what is left of it stays free. */
static int64_t take_from(struct uffdb_bench_buddy *buddy, uint64_t number, unsigned int order,
			 uint64_t pages, struct uffdb_ledger *balloon)
{
	size_t nr;
	const struct uffdb_block *block = uffdb_ledger_blocks(balloon, &nr);
	uint64_t first = number << order, end = first + (1ull << order);
	uint64_t taken = pages < end - first ? pages : end - first;
	int64_t set;

	uffdb_bitset_remove(&buddy->free[order], number);
	free_run(buddy, first + taken, end);
	set = uffdb_ledger_set(balloon, block->hva + first * UFFDB_PAGE, taken * UFFDB_PAGE);
	return set < 0 ? set : (int64_t)taken;
}

/* As many blocks of an order as @pages take, any of them as likely as another; the last in part. */
static int64_t take_of_order(struct uffdb_bench_buddy *buddy, unsigned int order, uint64_t pages,
			     uint64_t *random, struct uffdb_ledger *balloon)
{
	const struct uffdb_bitset *free = &buddy->free[order];
	uint64_t left = pages, seen = 0, blocks = free->count;
	uint64_t wanted = (pages + (1ull << order) - 1) >> order;

	for (uint64_t at = 0; left && seen < blocks; at++, seen++) {
		int64_t taken;

		at = uffdb_bitset_next(free, at);
		if (*random && uffdb_random_below(random, blocks - seen) >= wanted)
			continue;
		wanted--;
		taken = take_from(buddy, at, order, left, balloon);
		if (taken < 0)
			return taken;
		left -= (uint64_t)taken;
	}
	return (int64_t)(pages - left);
}

/*
 * One page after the other from the smallest block that there is: what was split off a block
 * is smaller than it, and goes before another is split. So blocks go whole, but for the last.
 */
int64_t uffdb_bench_buddy_take(struct uffdb_bench_buddy *buddy, uint64_t pages, uint64_t seed,
			       struct uffdb_ledger *balloon)
{
	uint64_t left = pages;
	size_t nr;

	if (!uffdb_ledger_blocks(balloon, &nr) || nr != 1)
		return -EINVAL;
	for (unsigned int order = 0; left && order < ORDERS; order++) {
		int64_t taken = take_of_order(buddy, order, left, &seed, balloon);

		if (taken < 0)
			return taken;
		left -= (uint64_t)taken;
	}
	return (int64_t)(pages - left);
}
