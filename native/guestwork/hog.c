// SPDX-License-Identifier: GPL-2.0-or-later
/* Take memory, page by page, until there is so much or until killed; keep it for a while. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "guestwork.h"

#define STEP (64ull << 20)

int hog_main(int argc, char **argv)
{
	uint64_t wanted = argc > 1 ? number(argv[1]) : UINT64_MAX;
	unsigned int seconds = argc > 2 ? (unsigned int)number(argv[2]) : 0;
	uint64_t touched = 0;

	while (touched < wanted) {
		uint64_t size = wanted - touched < STEP ? wanted - touched : STEP;
		char *memory = map_memory(size);

		for (uint64_t at = 0; at < size; at += PAGE)
			memory[at] = 1;
		touched += size;
	}
	printf("touched=%llu\n", (unsigned long long)touched);
	while (seconds)
		seconds = sleep(seconds);
	return 0;
}
