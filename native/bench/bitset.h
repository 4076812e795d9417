/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A set of numbers in which the next one is found at once, however few there are. */
#ifndef UFFDB_BITSET_H
#define UFFDB_BITSET_H

#include <stdbool.h>
#include <stdint.h>

#define UFFDB_BITSET_LEVELS 6 /* 64^6: more than there are pages */

/* A bit of a level says whether a word of the level below it has any. */
struct uffdb_bitset {
	uint64_t *levels[UFFDB_BITSET_LEVELS];
	uint64_t size;
	uint64_t count;
};

/** uffdb_bitset_init - make an empty set of numbers below @size. Return: 0 or -ENOMEM. */
int uffdb_bitset_init(struct uffdb_bitset *set, uint64_t size);
void uffdb_bitset_deinit(struct uffdb_bitset *set);

bool uffdb_bitset_test(const struct uffdb_bitset *set, uint64_t number);

/* @number is not in the set, or is; which is not looked at. */
void uffdb_bitset_add(struct uffdb_bitset *set, uint64_t number);
void uffdb_bitset_remove(struct uffdb_bitset *set, uint64_t number);

/** uffdb_bitset_next - Return: the first number from @from on, or the set's size. */
uint64_t uffdb_bitset_next(const struct uffdb_bitset *set, uint64_t from);

#endif
