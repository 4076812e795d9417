/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How much of each 2 MiB block of the address space, a unit, is ballooned: counted as it changes,
 * so that nobody has to walk bitmaps to know it.
 *
 * Any thread may change the counts. Who reads them meanwhile may miss what is under way, or see
 * it before what came before it; all is exact once nobody changes anything.
 */
#ifndef UFFDB_UNIT_COUNTS_H
#define UFFDB_UNIT_COUNTS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "uffdballoon.h"

struct uffdb_unit_counts {
	_Atomic uint16_t *pages; /* of each unit; memory is committed where any was ballooned */
	uint64_t nr;
	_Atomic int64_t broken; /* units that are ballooned in part */
	_Atomic int64_t whole;
};

int uffdb_unit_counts_map(struct uffdb_unit_counts *counts, uint64_t nr);
void uffdb_unit_counts_unmap(struct uffdb_unit_counts *counts);
/* @change pages more of a unit of @size pages are ballooned; below zero: less. */
void uffdb_unit_counts_add(struct uffdb_unit_counts *counts, uint64_t unit, uint64_t size,
			   int64_t change);
/* How many pages of a unit of @size pages are ballooned? */
uint64_t uffdb_unit_counts_of(const struct uffdb_unit_counts *counts, uint64_t unit, uint64_t size);
void uffdb_unit_counts_tally(const struct uffdb_unit_counts *counts, struct uffdb_tally *out);

#endif
