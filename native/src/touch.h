/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A fault that was read, and what there is to know about its page. */
#ifndef UFFDB_TOUCH_H
#define UFFDB_TOUCH_H

#include "uffdballoon.h"

struct uffdb_touch {
	uint64_t hva; /* of the page, which is @size large */
	uint64_t size;
	uint64_t read_ns;
	uint32_t tid;
	uint8_t role;
	bool write;
	bool protected; /* the page is there, write-protected */
	bool minor;	/* it is in the file, and not mapped: another process filled it */
	bool late;	/* it was made before its window was there: nobody waits */
	bool ballooned;
	bool told;		/* it is a read that was told of: drop.h */
	bool traps_after_zeros; /* given zeros, the page traps the write that may follow */
	const struct uffdb_block *block;

	/* Held for want of memory: since when, and how it goes on. */
	uint64_t lacking_since_ns;
	enum uffdb_lacking {
		UFFDB_LACKS_PAGE,
		UFFDB_LACKS_GRANT,
		UFFDB_LACKS_ZEROS
	} lacking;
	uint8_t lacking_verdict, lacking_action; /* of the grant */
};

static inline bool uffdb_is_huge(const struct uffdb_touch *touch)
{
	return touch->block->flags & UFFDB_BLOCK_HUGETLB;
}

/* Is what is written to it in the file? */
static inline bool uffdb_is_in_file(const struct uffdb_block *block)
{
	return block->flags & UFFDB_BLOCK_SHARED && !(block->flags & UFFDB_BLOCK_PRIVATE);
}

/* Are its zeros the kernel's zero page, which costs nothing? */
static inline bool uffdb_is_zero_shared(const struct uffdb_block *block)
{
	return !(block->flags & UFFDB_BLOCK_HUGETLB) && !uffdb_is_in_file(block);
}

/* Can it be answered with zeros, and what follows still be trapped? */
static inline bool uffdb_is_zero_readable(const struct uffdb_touch *touch)
{
	return touch->traps_after_zeros && !touch->write && !touch->protected && !touch->minor;
}

#endif
