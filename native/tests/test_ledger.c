// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdint.h>

#include "check.h"
#include "uffdballoon.h"

#define PAGE  4096ull
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
	struct uffdb_block blocks[] = {{BASE, PAGES * PAGE, 0, 0}, {0x1000, 4 * PAGE, 0, 0}};
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
		CHECK(uffdb_ledger_test(ledger, BASE + first * PAGE + 5) == value);
		if (turn % 100 == 0)
			check_runs(ledger);
	}
	uffdb_ledger_destroy(ledger);
}

static void refuses_what_is_no_ram(void)
{
	struct uffdb_block overlapping[] = {{BASE, 8 * PAGE, 0, 0}, {BASE + PAGE, PAGE, 0, 0}};
	struct uffdb_block block = {BASE, 8 * PAGE, 0, 0};
	struct uffdb_ledger *ledger;

	CHECK(uffdb_ledger_create(overlapping, 2, &ledger) == -EINVAL);
	CHECK(!uffdb_ledger_create(&block, 1, &ledger));
	CHECK(uffdb_ledger_set(ledger, BASE - PAGE, PAGE) == -ENOENT);
	CHECK(uffdb_ledger_set(ledger, BASE, 9 * PAGE) == -ENOENT);
	CHECK(uffdb_ledger_set(ledger, BASE + 1, PAGE) == -ENOENT);
	CHECK(uffdb_ledger_set(ledger, BASE, UINT64_MAX & ~(PAGE - 1)) == -ENOENT);
	CHECK(uffdb_ledger_test(ledger, BASE + 8 * PAGE) == -ENOENT);
	CHECK(uffdb_ledger_pages(ledger) == 0);
	uffdb_ledger_destroy(ledger);
}

int main(void)
{
	agrees_with_a_model();
	refuses_what_is_no_ram();
	return 0;
}
