/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the subcommands share. Each is main() of its own: arguments from argv[1], exit status. */
#ifndef GUESTWORK_H
#define GUESTWORK_H

#include <stdint.h>

#define PAGE	 4096ull
#define NS_PER_S 1000000000ull

int agent_main(int argc, char **argv);
int bench_main(int argc, char **argv);
int hog_main(int argc, char **argv);
int kexec_main(int argc, char **argv);
int memory_main(int argc, char **argv);
int port_main(int argc, char **argv);
int scatter_main(int argc, char **argv);

/* Both end the program when they cannot do it: what, and why, on standard error. */
void *map_memory(uint64_t size);
uint64_t number(const char *text);
_Noreturn void die(const char *what);

uint64_t now_ns(void);

/* The finalizer of splitmix64: every bit of the result depends on every bit of @x. */
static inline uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

#endif
