/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Random numbers that are the same everywhere. */
#ifndef UFFDB_RANDOM_H
#define UFFDB_RANDOM_H

#include <stdint.h>

/* splitmix64: even and fast. */
static inline uint64_t uffdb_random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static inline uint64_t uffdb_random_below(uint64_t *state, uint64_t limit)
{
	return (uint64_t)((__uint128_t)uffdb_random_next(state) * limit >> 64);
}

#endif
