// SPDX-License-Identifier: GPL-2.0-or-later
/* How long pages of zeros stay: a table that is given the time. */
#include <stdlib.h>

#include "../src/lent.h"
#include "../src/pages.h"
#include "check.h"

#define MS    1000000ull
#define START (1000 * MS)

static struct uffdb_lent *make_table(void)
{
	struct uffdb_lent *lent = malloc(sizeof(*lent));

	CHECK(lent);
	uffdb_lent_init(lent);
	return lent;
}

static uint64_t address_of(uint64_t page)
{
	return (1ull << 40) + page * UFFDB_PAGE;
}

static void add(struct uffdb_lent *lent, uint64_t page, uint64_t now_ns)
{
	CHECK(uffdb_lent_add(lent, address_of(page), UFFDB_PAGE, now_ns, 0));
}

/* Take out what is to go, which is these pages in this order. */
static void check_takes(struct uffdb_lent *lent, uint64_t first, uint64_t nr, uint64_t now_ns)
{
	uint64_t hva, size;

	for (uint64_t page = first; page < first + nr; page++) {
		CHECK(uffdb_lent_take(lent, now_ns, &hva, &size));
		CHECK(hva == address_of(page) && size == UFFDB_PAGE);
	}
	CHECK(!uffdb_lent_take(lent, now_ns, &hva, &size));
}

static void a_page_stays_for_its_term(void)
{
	struct uffdb_lent *lent = make_table();

	CHECK(uffdb_lent_deadline(lent) == 0);
	add(lent, 0, START);
	add(lent, 1, START + MS);
	CHECK(uffdb_lent_deadline(lent) == START + 20 * MS);
	check_takes(lent, 0, 0, START + 20 * MS - 1);
	check_takes(lent, 0, 1, START + 20 * MS);
	CHECK(uffdb_lent_deadline(lent) == START + 30 * MS);
	check_takes(lent, 1, 1, START + 30 * MS);
	CHECK(uffdb_lent_deadline(lent) == 0);
	free(lent);
}

static void a_page_that_is_read_over_and_over_stays_ever_longer_up_to_a_limit(void)
{
	static const uint64_t terms[] = {20, 40, 80, 160, 320, 320, 320};
	struct uffdb_lent *lent = make_table();
	uint64_t now_ns = START;

	for (size_t i = 0; i < sizeof(terms) / sizeof(*terms); i++) {
		add(lent, 7, now_ns);
		now_ns += terms[i] * MS;
		check_takes(lent, 7, 0, now_ns - 1);
		check_takes(lent, 7, 1, now_ns);
	}
	now_ns += 320 * MS; /* as long as it stayed: nobody reads it over and over */
	add(lent, 7, now_ns);
	check_takes(lent, 7, 1, now_ns + 20 * MS);
	free(lent);
}

static void the_older_half_goes_at_once_when_there_are_too_many(void)
{
	struct uffdb_lent *lent = make_table();

	for (uint64_t page = 0; page < 64; page++)
		add(lent, page, START);
	check_takes(lent, 0, 0, START);
	add(lent, 64, START);
	check_takes(lent, 0, 33, START);
	check_takes(lent, 33, 32, START + 20 * MS);
	free(lent);
}

static void what_was_dropped_too_early_outlasts_what_is_read_once(void)
{
	struct uffdb_lent *lent = make_table();

	for (uint64_t page = 0; page < 65; page++)
		add(lent, page, START);
	check_takes(lent, 0, 33, START);
	add(lent, 5, START + MS);
	for (uint64_t page = 65; page < 98; page++)
		add(lent, page, START + 2 * MS);
	check_takes(lent, 33, 33, START + 2 * MS);
	check_takes(lent, 66, 32, START + 22 * MS);
	check_takes(lent, 5, 1, START + 41 * MS);
	free(lent);
}

static void any_instruction_gets_all_the_huge_pages_that_it_needs(void)
{
	struct uffdb_lent *lent = make_table();
	uint64_t hva, size, there = 0;
	const uint64_t needed = 4;

	/* It faults at the first that is not there, until all of them are. */
	for (int fault = 0; there != (1ull << needed) - 1; fault++) {
		uint64_t next = (uint64_t)__builtin_ctzll(~there);

		CHECK(fault < 100);
		CHECK(uffdb_lent_add(lent, next * UFFDB_HUGE, UFFDB_HUGE, START, 0));
		there |= 1ull << next;
		while (uffdb_lent_take(lent, START, &hva, &size)) {
			CHECK(size == UFFDB_HUGE);
			there &= ~(1ull << hva / UFFDB_HUGE);
		}
	}
	free(lent);
}

static void a_full_table_has_pages_to_take_out(void)
{
	struct uffdb_lent *lent = make_table();
	uint64_t hva, size, nr = 0;

	while (uffdb_lent_add(lent, address_of(nr), UFFDB_PAGE, START, 0))
		nr++;
	CHECK(nr == UFFDB_LENT_ROOM);
	CHECK(uffdb_lent_take(lent, START, &hva, &size));
	add(lent, nr, START);
	free(lent);
}

static void a_read_that_was_told_of_is_known_once_it_was_dropped_in_its_epoch(void)
{
	struct uffdb_lent *lent = make_table();

	CHECK(uffdb_lent_add(lent, address_of(0), UFFDB_PAGE, START, 7));
	CHECK(uffdb_lent_add(lent, address_of(1), UFFDB_PAGE, START, 0));
	CHECK(!uffdb_lent_was_told(lent, address_of(0), UFFDB_PAGE, 7));
	check_takes(lent, 0, 2, START + 20 * MS);
	CHECK(uffdb_lent_was_told(lent, address_of(0), UFFDB_PAGE, 7));
	CHECK(!uffdb_lent_was_told(lent, address_of(0), UFFDB_PAGE, 8));
	CHECK(!uffdb_lent_was_told(lent, address_of(1), UFFDB_PAGE, 7));
	CHECK(!uffdb_lent_was_told(lent, address_of(2), UFFDB_PAGE, 7));
	free(lent);
}

int main(void)
{
	a_page_stays_for_its_term();
	a_page_that_is_read_over_and_over_stays_ever_longer_up_to_a_limit();
	the_older_half_goes_at_once_when_there_are_too_many();
	what_was_dropped_too_early_outlasts_what_is_read_once();
	any_instruction_gets_all_the_huge_pages_that_it_needs();
	a_full_table_has_pages_to_take_out();
	a_read_that_was_told_of_is_known_once_it_was_dropped_in_its_epoch();
	return 0;
}
