// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Work that notices when its memory is lost or changed.
 *
 * Every page holds a pattern of the seed, its number and how often it was written; that count is
 * kept apart. Random pages are checked, and every other time written anew. Each word that is not
 * as it was left counts as bad; at the end all are checked.
 */
#include <signal.h>
#include <stdio.h>

#include "guestwork.h"

#define WORDS (PAGE / sizeof(uint64_t))

static struct {
	uint64_t *pages;
	uint32_t *versions;
	uint64_t seed, nr_pages, bad, checked;
} the;

static volatile sig_atomic_t enough;

static void on_term(int signal)
{
	(void)signal;
	enough = 1;
}

static uint64_t first_word(uint64_t page)
{
	return mix(the.seed ^ mix(page << 32 | the.versions[page]));
}

static void write_page(uint64_t page)
{
	uint64_t word = first_word(page);

	for (uint64_t i = 0; i < WORDS; i++, word += 0x9e3779b97f4a7c15ull)
		the.pages[page * WORDS + i] = word;
}

static void check_page(uint64_t page)
{
	uint64_t word = first_word(page);

	for (uint64_t i = 0; i < WORDS; i++, word += 0x9e3779b97f4a7c15ull)
		the.bad += the.pages[page * WORDS + i] != word;
	the.checked++;
}

int memory_main(int argc, char **argv)
{
	uint64_t writes = 0, begin, end, random;

	if (argc != 4) {
		fprintf(stderr, "guestwork memory BYTES SEED SECONDS\n");
		return 2;
	}
	signal(SIGTERM, on_term);
	the.nr_pages = number(argv[1]) / PAGE;
	the.seed = number(argv[2]);
	the.pages = map_memory(the.nr_pages * PAGE);
	the.versions = map_memory(the.nr_pages * sizeof(*the.versions));
	for (uint64_t page = 0; page < the.nr_pages; page++)
		write_page(page);
	printf("filled=%llu\n", (unsigned long long)the.nr_pages);
	random = the.seed;
	begin = now_ns();
	end = begin + number(argv[3]) * NS_PER_S;
	while (the.nr_pages && !enough && now_ns() < end) {
		uint64_t page = mix(random++) % the.nr_pages;

		check_page(page);
		if (random % 2)
			continue;
		the.versions[page]++;
		write_page(page);
		writes++;
	}
	for (uint64_t page = 0; page < the.nr_pages; page++)
		check_page(page);
	printf("pages=%llu checked=%llu written=%llu bad=%llu\n", (unsigned long long)the.nr_pages,
	       (unsigned long long)the.checked, (unsigned long long)writes,
	       (unsigned long long)the.bad);
	return the.bad ? 1 : 0;
}
