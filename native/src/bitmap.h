/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bitmaps of 64-bit words. Words may change under a reader: they are read one by one, and nothing
 * is ordered by them.
 */
#ifndef UFFDB_BITMAP_H
#define UFFDB_BITMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define UFFDB_WORD_BITS 64ull

static inline uint64_t uffdb_word(const _Atomic uint64_t *map, uint64_t word)
{
	return atomic_load_explicit(&map[word], memory_order_relaxed);
}

/* Which bits of word @word lie in [first, last)? */
static inline uint64_t uffdb_word_mask(uint64_t word, uint64_t first, uint64_t last)
{
	uint64_t base = word * UFFDB_WORD_BITS, mask = ~0ull;

	if (first > base)
		mask &= ~0ull << (first - base);
	if (last < base + UFFDB_WORD_BITS)
		mask &= ~0ull >> (base + UFFDB_WORD_BITS - last);
	return mask;
}

static inline bool uffdb_bit(const _Atomic uint64_t *map, uint64_t bit)
{
	return uffdb_word(map, bit / UFFDB_WORD_BITS) >> (bit % UFFDB_WORD_BITS) & 1;
}

/* The number of the lowest bit of @bits, which are those of word @word and not all 0. */
static inline uint64_t uffdb_lowest_bit(uint64_t word, uint64_t bits)
{
	return word * UFFDB_WORD_BITS + (uint64_t)__builtin_ctzll(bits);
}

static inline uint64_t uffdb_highest_bit(uint64_t word, uint64_t bits)
{
	return word * UFFDB_WORD_BITS + 63 - (uint64_t)__builtin_clzll(bits);
}

/* The first bit in [at, last) that is @value, or @last. */
static inline uint64_t uffdb_seek_bit(const _Atomic uint64_t *map, uint64_t at, uint64_t last,
				      bool value)
{
	while (at < last) {
		uint64_t word = at / UFFDB_WORD_BITS, bits = uffdb_word(map, word);

		bits = (value ? bits : ~bits) & uffdb_word_mask(word, at, last);
		if (bits)
			return uffdb_lowest_bit(word, bits);
		at = (word + 1) * UFFDB_WORD_BITS;
	}
	return last;
}

/* Set or clear [first, last), of which we are the only writer. Return: how many bits changed. */
static inline uint64_t uffdb_write_bits(_Atomic uint64_t *map, uint64_t first, uint64_t last,
					bool value)
{
	uint64_t changed = 0;

	for (uint64_t word = first / UFFDB_WORD_BITS; word * UFFDB_WORD_BITS < last; word++) {
		uint64_t mask = uffdb_word_mask(word, first, last), bits = uffdb_word(map, word);

		changed += (uint64_t)__builtin_popcountll((value ? ~bits : bits) & mask);
		bits = value ? bits | mask : bits & ~mask;
		atomic_store_explicit(&map[word], bits, memory_order_relaxed);
	}
	return changed;
}

#endif
