// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "uffdballoon.h"

#define PAGE  4096ull
#define HUGE  (512 * PAGE)
#define BASE  0x700000000000ull
#define PAGES 1000ull

static uint8_t model[PAGES];

static uint64_t model_count(void)
{
	uint64_t count = 0;

	for (uint64_t i = 0; i < PAGES; i++)
		count += model[i];
	return count;
}

static void check_runs(const struct uffdb_ledger *ledger)
{
	uint64_t at = BASE, end = BASE + PAGES * PAGE, seen = 0;
	struct uffdb_range run;

	while (at < end && uffdb_ledger_next(ledger, at, end, &run) > 0) {
		uint64_t first = (run.start - BASE) / PAGE, last = first + run.len / PAGE;

		CHECK(!first || !model[first - 1]);
		CHECK(last == PAGES || !model[last]);
		for (uint64_t i = first; i < last; i++)
			CHECK(model[i]);
		seen += last - first;
		at = run.start + run.len;
	}
	CHECK(seen == model_count());
}

/* A ledger and an array of bytes go through the same changes. */
static void agrees_with_a_model(void)
{
	struct uffdb_block blocks[] = {{BASE, PAGES * PAGE, 0, 1}, {0x1000, 4 * PAGE, 0, 0}};
	struct uffdb_ledger *ledger;

	srand(1);
	CHECK(!uffdb_ledger_create(blocks, 2, &ledger));
	for (int turn = 0; turn < 3000; turn++) {
		uint64_t first = (uint64_t)rand() % PAGES;
		uint64_t count = 1 + (uint64_t)rand() % (PAGES - first);
		uint8_t value = (uint8_t)(rand() & 1);
		uint64_t before = model_count(), after;
		int64_t changed;

		if (rand() & 1)
			count = 1 + count % 70;
		for (uint64_t i = first; i < first + count && i < PAGES; i++)
			model[i] = value;
		if (first + count > PAGES)
			count = PAGES - first;
		after = model_count();
		changed = value ? uffdb_ledger_set(ledger, BASE + first * PAGE, count * PAGE)
				: uffdb_ledger_clear(ledger, BASE + first * PAGE, count * PAGE);
		CHECK(changed == (int64_t)(value ? after - before : before - after));
		CHECK(uffdb_ledger_pages(ledger) == after);
		CHECK(uffdb_ledger_node_pages(ledger, 1) == after);
		CHECK(uffdb_ledger_test(ledger, BASE + first * PAGE + 5) == value);
		if (turn % 100 == 0)
			check_runs(ledger);
	}
	CHECK(uffdb_ledger_node_pages(ledger, 0) == 0);
	uffdb_ledger_destroy(ledger);
}

/* What is ballooned of [hva, end), a page at a time. */
static uint64_t recount(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t end)
{
	uint64_t count = 0;

	for (; hva < end; hva += PAGE)
		count += uffdb_ledger_test(ledger, hva) == 1;
	return count;
}

static void check_counters(const struct uffdb_ledger *ledger, const struct uffdb_block *block)
{
	uint64_t end = block->hva + block->size;
	struct uffdb_tally told, counted = {0};

	for (uint64_t at = block->hva, next; at < end; at = next) {
		uint64_t count;

		next = (at / HUGE + 1) * HUGE < end ? (at / HUGE + 1) * HUGE : end;
		count = recount(ledger, at, next);
		CHECK(uffdb_ledger_count(ledger, at, next - at) == count);
		counted.untouched += !count;
		counted.whole += count == (next - at) / PAGE;
		counted.broken += count && count < (next - at) / PAGE;
	}
	CHECK(!uffdb_ledger_tally(ledger, block->hva + block->size / 2, &told));
	CHECK(told.broken == counted.broken && told.whole == counted.whole);
	CHECK(told.untouched == counted.untouched);
}

/* A RAM block of three whole blocks of 2 MiB and some, at an address that is a multiple or not. */
static void counters_agree_with_a_recount(uint64_t hva)
{
	struct uffdb_block block = {hva, 3 * HUGE + 700 * PAGE, 0, 0};
	const uint64_t pages = block.size / PAGE;
	struct uffdb_ledger *ledger, *copy, *again;
	int fd = memfd_create("ledger", MFD_CLOEXEC);

	CHECK(!uffdb_ledger_create_in(fd, &block, 1, &ledger));
	CHECK(!uffdb_ledger_create(&block, 1, &copy));
	for (int turn = 0; turn < 400; turn++) {
		uint64_t first = (uint64_t)rand() % pages, count = pages - first;
		uint64_t start;

		/* Small pieces and large ones, and from one block of 2 MiB to where another begins.
		 */
		if (rand() % 4)
			count = 1 + (uint64_t)rand() % (count < 600 ? count : 600);
		start = block.hva + first * PAGE;
		if (rand() % 4 == 0)
			count = (HUGE - start % HUGE) / PAGE;
		if (count > pages - first)
			count = pages - first;
		if (rand() & 1)
			CHECK(uffdb_ledger_set(ledger, start, count * PAGE) >= 0);
		else
			CHECK(uffdb_ledger_clear(ledger, start, count * PAGE) >= 0);
		CHECK(uffdb_ledger_count(ledger, start, count * PAGE) ==
		      recount(ledger, start, start + count * PAGE));
		check_counters(ledger, &block);
		if (turn % 50 == 0) {
			uffdb_ledger_copy(ledger, copy);
			check_counters(copy, &block);
		}
	}
	CHECK(!uffdb_ledger_create_in(fd, &block, 1, &again));
	CHECK(uffdb_ledger_pages(again) == uffdb_ledger_pages(ledger));
	check_counters(again, &block);
	uffdb_ledger_destroy(again);
	uffdb_ledger_destroy(copy);
	uffdb_ledger_destroy(ledger);
	close(fd);
}

static void counts_the_pages_of_each_node(void)
{
	/* A node of two RAM blocks, and a block of no known node. */
	struct uffdb_block blocks[] = {{BASE, 80 * PAGE, 0, 1},
				       {2 * BASE, 80 * PAGE, 0, 0},
				       {3 * BASE, 80 * PAGE, 0, 1},
				       {4 * BASE, 80 * PAGE, 0, UFFDB_MAX_NODES}};
	struct uffdb_ledger *ledger, *copy;

	CHECK(!uffdb_ledger_create(blocks, 4, &ledger));
	CHECK(!uffdb_ledger_create(blocks, 4, &copy));
	CHECK(uffdb_ledger_set(copy, 2 * BASE, 80 * PAGE) == 80); /* is to be forgotten */
	CHECK(uffdb_ledger_set(ledger, BASE, 70 * PAGE) == 70);
	CHECK(uffdb_ledger_set(ledger, 2 * BASE, PAGE) == 1);
	CHECK(uffdb_ledger_set(ledger, 3 * BASE + 60 * PAGE, 10 * PAGE) == 10);
	CHECK(uffdb_ledger_set(ledger, 4 * BASE, 2 * PAGE) == 2);
	CHECK(uffdb_ledger_set(ledger, BASE, 71 * PAGE) == 1);
	CHECK(uffdb_ledger_clear(ledger, BASE + 70 * PAGE, 10 * PAGE) == 1);
	uffdb_ledger_copy(ledger, copy);
	for (int i = 0; i < 2; i++) {
		const struct uffdb_ledger *either = i ? copy : ledger;

		CHECK(uffdb_ledger_node_pages(either, 0) == 1);
		CHECK(uffdb_ledger_node_pages(either, 1) == 80);
		CHECK(uffdb_ledger_node_pages(either, 2) == 0);
		CHECK(uffdb_ledger_pages(either) == 83);
	}
	CHECK(uffdb_ledger_clear(copy, 3 * BASE, 80 * PAGE) == 10);
	CHECK(uffdb_ledger_node_pages(copy, 1) == 70);
	uffdb_ledger_destroy(copy);
	uffdb_ledger_destroy(ledger);
}

struct changer {
	pthread_t thread;
	struct uffdb_ledger *ledger;
	uint64_t start;
};

static void *change_often(void *argument)
{
	const struct changer *changer = argument;

	/* Neighbours share words. */
	for (uint64_t i = 0; i < 20000; i++) {
		uffdb_ledger_set(changer->ledger, changer->start + i % 40 * PAGE, 30 * PAGE);
		uffdb_ledger_clear(changer->ledger, changer->start + i % 7 * PAGE, 50 * PAGE);
	}
	return NULL;
}

static void counts_right_whoever_changes_it_meanwhile(void)
{
	struct uffdb_block blocks[] = {{BASE, 200 * PAGE, 0, 0}, {2 * BASE, 200 * PAGE, 0, 1}};
	struct uffdb_ledger *ledger;
	struct changer changers[4];

	CHECK(!uffdb_ledger_create(blocks, 2, &ledger));
	for (uint64_t i = 0; i < 4; i++) {
		uint64_t start = (1 + i / 2) * BASE + i % 2 * 50 * PAGE;

		changers[i] = (struct changer){.ledger = ledger, .start = start};
		CHECK(!pthread_create(&changers[i].thread, NULL, change_often, &changers[i]));
	}
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(changers[i].thread, NULL));
	for (uint32_t node = 0; node < 2; node++) {
		CHECK(uffdb_ledger_node_pages(ledger, node) ==
		      recount(ledger, blocks[node].hva, blocks[node].hva + blocks[node].size));
		check_counters(ledger, &blocks[node]);
	}
	CHECK(uffdb_ledger_pages(ledger) ==
	      uffdb_ledger_node_pages(ledger, 0) + uffdb_ledger_node_pages(ledger, 1));
	uffdb_ledger_destroy(ledger);
}

static void refuses_what_is_no_ram(void)
{
	struct uffdb_block overlapping[] = {{BASE, 8 * PAGE, 0, 0}, {BASE + PAGE, PAGE, 0, 0}};
	struct uffdb_block block = {BASE, 8 * PAGE, 0, 0};
	struct uffdb_ledger *ledger;
	struct uffdb_tally tally;

	CHECK(uffdb_ledger_create(overlapping, 2, &ledger) == -EINVAL);
	CHECK(!uffdb_ledger_create(&block, 1, &ledger));
	CHECK(uffdb_ledger_set(ledger, BASE - PAGE, PAGE) == -ENOENT);
	CHECK(uffdb_ledger_set(ledger, BASE, 9 * PAGE) == -ENOENT);
	CHECK(uffdb_ledger_set(ledger, BASE + 1, PAGE) == -ENOENT);
	CHECK(uffdb_ledger_set(ledger, BASE, UINT64_MAX & ~(PAGE - 1)) == -ENOENT);
	CHECK(uffdb_ledger_test(ledger, BASE + 8 * PAGE) == -ENOENT);
	CHECK(uffdb_ledger_tally(ledger, BASE + 8 * PAGE, &tally) == -ENOENT);
	CHECK(uffdb_ledger_pages(ledger) == 0);
	uffdb_ledger_destroy(ledger);
}

static void is_found_again_in_a_file(void)
{
	struct uffdb_block blocks[] = {{BASE, PAGES * PAGE, 0, 0}, {2 * BASE, 8 * PAGE, 0, 1}};
	struct uffdb_block other = {BASE, PAGES * PAGE, 0, 0};
	struct uffdb_ledger *ledger;
	int fd = memfd_create("ledger", MFD_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(!uffdb_ledger_create_in(fd, blocks, 2, &ledger));
	CHECK(uffdb_ledger_pages(ledger) == 0);
	CHECK(uffdb_ledger_set(ledger, BASE + 60 * PAGE, 10 * PAGE) == 10);
	CHECK(uffdb_ledger_set(ledger, 2 * BASE + 7 * PAGE, PAGE) == 1);
	uffdb_ledger_destroy(ledger);

	CHECK(!uffdb_ledger_create_in(fd, blocks, 2, &ledger));
	CHECK(uffdb_ledger_pages(ledger) == 11);
	CHECK(uffdb_ledger_node_pages(ledger, 0) == 10);
	CHECK(uffdb_ledger_node_pages(ledger, 1) == 1);
	CHECK(uffdb_ledger_test(ledger, BASE + 69 * PAGE) == 1);
	CHECK(uffdb_ledger_test(ledger, BASE + 70 * PAGE) == 0);
	CHECK(uffdb_ledger_clear(ledger, 2 * BASE, 8 * PAGE) == 1);
	uffdb_ledger_destroy(ledger);

	CHECK(uffdb_ledger_create_in(fd, &other, 1, &ledger) == -EINVAL);
	blocks[1].hva += PAGE;
	CHECK(uffdb_ledger_create_in(fd, blocks, 2, &ledger) == -EINVAL);
	close(fd);
}

int main(void)
{
	is_found_again_in_a_file();
	agrees_with_a_model();
	counters_agree_with_a_recount(BASE);
	counters_agree_with_a_recount(BASE + 300 * PAGE);
	counts_the_pages_of_each_node();
	counts_right_whoever_changes_it_meanwhile();
	refuses_what_is_no_ram();
	return 0;
}
