// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * How fast memory is that was allocated and written once: sequential reads and writes, then
 * random reads, slice by slice, so that the host can change something between two slices.
 *
 * SLICES 0 measures a slice for each line on standard input, until it ends.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "guestwork.h"

#define HUGE  (2ull << 20)
#define CHUNK (256u << 10) /* bytes between two looks at the clock */
#define BATCH 4096u	   /* random accesses between two looks */

static struct {
	uint64_t *words;
	uint64_t nr_words, at, random;
} the;

static double sequential_bytes_per_s(uint64_t slice_ns)
{
	const uint64_t step = CHUNK / sizeof(uint64_t);
	uint64_t begin = now_ns(), done = 0, now;

	do {
		for (uint64_t i = 0; i < step; i++)
			the.words[the.at + i] += 1;
		the.at = (the.at + step) % the.nr_words;
		done += 2 * CHUNK; // each byte is read and written
		now = now_ns();
	} while (now - begin < slice_ns);
	return (double)done * NS_PER_S / (double)(now - begin);
}

static double random_per_s(uint64_t slice_ns)
{
	uint64_t begin = now_ns(), done = 0, now;

	do {
		// Where to read next hangs on what was read, so that no two reads overlap.
		for (unsigned int i = 0; i < BATCH; i++)
			the.random = mix(the.random + the.words[the.random % the.nr_words]);
		done += BATCH;
		now = now_ns();
	} while (now - begin < slice_ns);
	return (double)done * NS_PER_S / (double)(now - begin);
}

static void measure_slice(uint64_t slice, uint64_t slice_ns)
{
	double sequential = sequential_bytes_per_s(slice_ns / 2);

	printf("slice=%llu sequential_bytes_per_s=%.0f random_per_s=%.0f\n",
	       (unsigned long long)slice, sequential, random_per_s(slice_ns / 2));
}

int bench_main(int argc, char **argv)
{
	uint64_t size, slices, slice_ns, slice = 0;
	char line[64];

	if (argc < 4 || argc > 5 || (argc == 5 && strcmp(argv[4], "thp"))) {
		fprintf(stderr, "guestwork bench BYTES SLICES SLICE_MS [thp]\n");
		return 2;
	}
	size = number(argv[1]) / HUGE * HUGE;
	slices = number(argv[2]);
	slice_ns = number(argv[3]) * 1000000;
	if (!size) {
		errno = ERANGE;
		die(argv[1]);
	}
	the.words = map_memory(size + HUGE);
	the.words = (uint64_t *)(((uintptr_t)the.words + HUGE - 1) / HUGE * HUGE);
	the.nr_words = size / sizeof(uint64_t);
	if (madvise(the.words, size, argc == 5 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die("madvise");
	for (uint64_t i = 0; i < the.nr_words; i++)
		the.words[i] = mix(i);
	printf("ready=%llu\n", (unsigned long long)size);
	for (; slices; slices--)
		measure_slice(slice++, slice_ns);
	if (!slice)
		while (fgets(line, sizeof(line), stdin))
			measure_slice(slice++, slice_ns);
	return 0;
}
