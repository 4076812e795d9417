// SPDX-License-Identifier: GPL-2.0-or-later
/* A word of each level has 64 of the level below it: a search is a few words up and down. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitset.h"

#define BITS 64

static uint64_t words_for(uint64_t bits)
{
	return (bits + BITS - 1) / BITS;
}

int uffdb_bitset_init(struct uffdb_bitset *set, uint64_t size)
{
	uint64_t words = size;

	memset(set, 0, sizeof(*set));
	set->size = size;
	for (int level = 0; level < UFFDB_BITSET_LEVELS; level++) {
		words = words_for(words);
		set->levels[level] = calloc(words ? words : 1, sizeof(uint64_t));
		if (!set->levels[level]) {
			uffdb_bitset_deinit(set);
			return -ENOMEM;
		}
	}
	return 0;
}

void uffdb_bitset_deinit(struct uffdb_bitset *set)
{
	for (int level = 0; level < UFFDB_BITSET_LEVELS; level++)
		free(set->levels[level]);
	memset(set, 0, sizeof(*set));
}

bool uffdb_bitset_test(const struct uffdb_bitset *set, uint64_t number)
{
	return set->levels[0][number / BITS] >> number % BITS & 1;
}

void uffdb_bitset_add(struct uffdb_bitset *set, uint64_t number)
{
	set->count++;
	for (int level = 0; level < UFFDB_BITSET_LEVELS; level++) {
		uint64_t *word = &set->levels[level][number / BITS];
		bool had_some = *word;

		*word |= 1ull << number % BITS;
		if (had_some)
			return;
		number /= BITS;
	}
}

void uffdb_bitset_remove(struct uffdb_bitset *set, uint64_t number)
{
	set->count--;
	for (int level = 0; level < UFFDB_BITSET_LEVELS; level++) {
		uint64_t *word = &set->levels[level][number / BITS];

		*word &= ~(1ull << number % BITS);
		if (*word)
			return;
		number /= BITS;
	}
}

/* Go down from a bit of @level to the first number that it stands for. */
static uint64_t first_of(const struct uffdb_bitset *set, int level, uint64_t bit)
{
	while (level-- > 0)
		bit = bit * BITS + (uint64_t)__builtin_ctzll(set->levels[level][bit]);
	return bit;
}

uint64_t uffdb_bitset_next(const struct uffdb_bitset *set, uint64_t from)
{
	uint64_t bits = set->size;

	for (int level = 0; level < UFFDB_BITSET_LEVELS && from < bits; level++) {
		uint64_t rest = set->levels[level][from / BITS] >> from % BITS;

		if (rest)
			return first_of(set, level, from + (uint64_t)__builtin_ctzll(rest));
		from = from / BITS + 1;
		bits = words_for(bits);
	}
	return set->size;
}
