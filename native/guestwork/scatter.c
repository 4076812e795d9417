// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Fragment the guest's memory: of all that is taken every second page goes back to the kernel,
 * which then has no larger blocks there than of one page.
 */
#include <stdio.h>
#include <sys/mman.h>

#include "guestwork.h"

#define WORDS (PAGE / sizeof(uint64_t))

static uint64_t count_bad(const uint64_t *words, uint64_t pages)
{
	uint64_t bad = 0;

	for (uint64_t page = 0; page < pages; page += 2)
		for (uint64_t i = page * WORDS; i < (page + 1) * WORDS; i++)
			bad += words[i] != mix(i);
	return bad;
}

/* Each access depends on the one before, and goes to any word of any page that was kept. */
static double random_per_s(const uint64_t *words, uint64_t pages, uint64_t slice_ns)
{
	uint64_t kept = (pages + 1) / 2, accesses = 0, x = 1, start = now_ns(), now = start;

	for (; now - start < slice_ns; now = now_ns())
		for (int i = 0; i < 4096; i++, accesses++) {
			x = mix(x + accesses);
			x ^= words[x % kept * 2 * WORDS + x / kept % WORDS];
		}
	return x ? (double)accesses * NS_PER_S / (double)(now - start) : 0;
}

int scatter_main(int argc, char **argv)
{
	uint64_t pages = argc > 1 ? number(argv[1]) / PAGE : 0;
	uint64_t slice_ns = argc > 2 ? number(argv[2]) * 1000000 : 0;
	uint64_t *words;
	char line[64];

	if (!pages || !slice_ns) {
		fprintf(stderr, "guestwork scatter BYTES SLICE_MS\n");
		return 2;
	}
	words = map_memory(pages * PAGE);
	if (madvise(words, pages * PAGE, MADV_NOHUGEPAGE))
		die("madvise");
	for (uint64_t i = 0; i < pages * WORDS; i++)
		words[i] = mix(i);
	for (uint64_t page = 1; page < pages; page += 2)
		if (madvise(words + page * WORDS, PAGE, MADV_DONTNEED))
			die("madvise");
	printf("kept=%llu\n", (unsigned long long)((pages + 1) / 2));
	while (fgets(line, sizeof(line), stdin))
		printf("random_per_s=%.0f bad=%llu\n", random_per_s(words, pages, slice_ns),
		       (unsigned long long)count_bad(words, pages));
	return 0;
}
