// SPDX-License-Identifier: GPL-2.0-or-later
/* Ballooned pages that a huge page keeps: seen, given back, and nothing else changed by it. */
#include <sys/uio.h>

#include "engine_setup.h"

#define COLLAPSE 25 /* MADV_COLLAPSE */

static const struct uffdb_khugepaged EAGER = {.max_ptes_none = 511, .collapses_private = true};

struct fragmented {
	int pidfd, pagemap, kpageflags;
	uint8_t *memory;
	struct uffdb_ledger *ledger;
	struct uffdb_reclaimer *reclaimer;
};

static struct uffdb_reclaim_measure measure(const struct fragmented *of)
{
	struct uffdb_range left = {(uintptr_t)of->memory, SIZE};
	struct uffdb_reclaim_measure measured = {0};

	/* In slices, as whoever has a loop does. */
	while (left.len)
		CHECK(!uffdb_reclaimer_measure(of->reclaimer, &left, 2, &EAGER, &measured));
	return measured;
}

static uint64_t broken_blocks(const struct fragmented *of)
{
	struct uffdb_tally tally;

	CHECK(!uffdb_ledger_tally(of->ledger, (uintptr_t)of->memory, &tally));
	return tally.broken;
}

static struct uffdb_reclaim_stats stats(const struct fragmented *of)
{
	struct uffdb_reclaim_stats stats;

	uffdb_reclaimer_stats(of->reclaimer, &stats);
	return stats;
}

static void give_up(const struct fragmented *of, uint64_t page)
{
	CHECK(uffdb_ledger_set(of->ledger, (uintptr_t)of->memory + page * PAGE, PAGE) == 1);
	CHECK(!madvise(of->memory + page * PAGE, PAGE, MADV_DONTNEED));
}

static uint32_t *word(const struct fragmented *of, uint64_t page)
{
	return (uint32_t *)(of->memory + page * PAGE);
}

/* A split is refused while somebody looks at the page, and then tried again. */
static void finish(const struct fragmented *of)
{
	for (int i = 0; i < 7 && stats(of).pending_blocks; i++)
		CHECK(uffdb_reclaimer_pass(of->reclaimer, 100, 0) >= 0);
	CHECK(stats(of).pending_blocks == 0 && stats(of).failed_blocks == 0);
}

/* Four huge pages, all written to. */
static void map(struct fragmented *of)
{
	struct uffdb_reclaim_config config = {0};
	struct uffdb_block block = {.size = SIZE};

	of->memory = map_aligned(SIZE);
	block.hva = (uintptr_t)of->memory;
	CHECK(!madvise(of->memory, SIZE, MADV_HUGEPAGE));
	for (uint64_t page = 0; page < PAGES; page++)
		*word(of, page) = (uint32_t)page + 1;
	madvise(of->memory, SIZE, COLLAPSE);
	keep_khugepaged_out(of->memory, SIZE);
	of->pidfd = uffdb_pidfd_open(getpid());
	of->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	of->kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	CHECK(!uffdb_ledger_create(&block, 1, &of->ledger));
	config.pidfd = of->pidfd;
	config.pagemap_fd = of->pagemap;
	config.kpageflags_fd = of->kpageflags;
	CHECK(!uffdb_reclaimer_create(&config, of->ledger, &of->reclaimer));
}

static void unmap(struct fragmented *of)
{
	uffdb_reclaimer_destroy(of->reclaimer);
	uffdb_ledger_destroy(of->ledger);
	close(of->pidfd);
	close(of->pagemap);
	close(of->kpageflags);
	munmap(of->memory, SIZE);
}

static void skip_where_huge_pages_are_not_seen(void)
{
	struct fragmented of;

	map(&of);
	give_up(&of, 0);
	if (!stats(&of).sees_folios || !measure(&of).pinned_pages) {
		fprintf(stderr, "no huge pages here, or /proc/kpageflags is not readable\n");
		exit(SKIPPED);
	}
	unmap(&of);
}

static void what_a_huge_page_keeps_is_given_back(void)
{
	struct uffdb_reclaim_measure before, after;
	struct fragmented of;

	map(&of);
	for (uint64_t page = 1; page < PAGES; page += 2)
		give_up(&of, page);
	before = measure(&of);
	CHECK(before.ballooned_pages == PAGES / 2 && before.resident_pages == 0);
	CHECK(before.pinned_pages == PAGES / 2 && before.pinned_blocks == SIZE / HUGE);
	CHECK(broken_blocks(&of) == SIZE / HUGE && before.eligible_blocks == SIZE / HUGE);
	finish(&of);
	after = measure(&of);
	CHECK(after.pinned_pages == 0 && after.ballooned_pages == PAGES / 2);
	CHECK(stats(&of).split_blocks == SIZE / HUGE);
	CHECK(stats(&of).freed_pages == PAGES / 2);
	/* One page each, no more; or again, where one was refused. */
	CHECK(stats(&of).advised_pages < 2 * SIZE / HUGE);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 100, 0) == 0);
	for (uint64_t page = 0; page < PAGES; page += 2)
		CHECK(*word(&of, page) == page + 1);
	unmap(&of);
}

static void only_blocks_with_ballooned_pages_are_split(void)
{
	struct fragmented of;

	map(&of);
	give_up(&of, 512 + 7);
	for (uint64_t page = 1024; page < 1536; page++)
		give_up(&of, page);
	finish(&of);
	CHECK(stats(&of).split_blocks == 1 && measure(&of).pinned_pages == 0);
	/* The first is huge still: a zap in it is kept. */
	give_up(&of, 3);
	CHECK(measure(&of).pinned_pages == 1);
	CHECK(broken_blocks(&of) == 2 && measure(&of).eligible_blocks == 2);
	unmap(&of);
}

static void blocks_that_still_change_are_left_alone(void)
{
	const uint64_t hour_ns = 3600000000000ull;
	struct fragmented of;

	map(&of);
	give_up(&of, 1);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 100, 1) == 0); /* gathers it */
	give_up(&of, 2);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 100, 1) == 0); /* and again: it has changed */
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 100, hour_ns) == 0);
	CHECK(stats(&of).pending_blocks == 1);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 100, 1) == 1);
	finish(&of);
	CHECK(measure(&of).pinned_pages == 0);
	unmap(&of);
}

static void a_pass_does_no_more_than_it_may(void)
{
	struct fragmented of;

	map(&of);
	for (uint64_t page = 0; page < PAGES; page += 512)
		give_up(&of, page);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 1, 0) == 1);
	CHECK(stats(&of).pending_blocks >= SIZE / HUGE - 1);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 2, 0) == 2);
	finish(&of);
	CHECK(measure(&of).pinned_pages == 0);
	unmap(&of);
}

static void what_somebody_holds_is_tried_again(void)
{
	struct fragmented of;
	struct iovec held;
	char byte[PAGE];
	int ends[2];

	map(&of);
	give_up(&of, 1);
	held = (struct iovec){of.memory, PAGE};
	CHECK(!pipe(ends) && vmsplice(ends[1], &held, 1, 0) == PAGE);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 100, 0) == 1);
	CHECK(measure(&of).pinned_pages == 1 && stats(&of).pending_blocks == 1);
	CHECK(read(ends[0], byte, PAGE) == PAGE);
	finish(&of);
	CHECK(measure(&of).pinned_pages == 0);
	close(ends[0]);
	close(ends[1]);
	unmap(&of);
}

static void a_block_of_4k_pages_is_not_touched(void)
{
	struct fragmented of;

	map(&of);
	give_up(&of, 1);
	finish(&of);
	give_up(&of, 3);
	CHECK(measure(&of).pinned_pages == 0);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 100, 0) == 0);
	CHECK(stats(&of).split_blocks == 1);
	unmap(&of);
}

static void who_sees_no_huge_pages_splits_by_guess(void)
{
	struct uffdb_reclaim_config config = {0};
	struct uffdb_reclaimer *seeing;
	struct fragmented of;

	map(&of);
	seeing = of.reclaimer;
	config.pidfd = of.pidfd;
	config.pagemap_fd = of.pagemap;
	config.kpageflags_fd = -1;
	CHECK(!uffdb_reclaimer_create(&config, of.ledger, &of.reclaimer));
	give_up(&of, 1);
	CHECK(!stats(&of).sees_folios);
	CHECK(uffdb_reclaimer_pass(of.reclaimer, 100, 0) == 1);
	CHECK(stats(&of).advised_pages == 1 && stats(&of).pending_blocks == 0);
	uffdb_reclaimer_destroy(of.reclaimer);
	of.reclaimer = seeing;
	finish(&of);
	CHECK(measure(&of).pinned_pages == 0);
	unmap(&of);
}

int main(void)
{
	skip_where_huge_pages_are_not_seen();
	what_a_huge_page_keeps_is_given_back();
	only_blocks_with_ballooned_pages_are_split();
	blocks_that_still_change_are_left_alone();
	a_pass_does_no_more_than_it_may();
	what_somebody_holds_is_tried_again();
	a_block_of_4k_pages_is_not_touched();
	who_sees_no_huge_pages_splits_by_guess();
	return 0;
}
