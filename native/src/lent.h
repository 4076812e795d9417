/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages of zeros that readers were given where that costs memory, and how long each may stay.
 *
 * A page stays 20 ms. One that is read again within the time that it stayed, after it was dropped,
 * stays for twice as long, and at most for 320 ms: whoever reads it over and over faults a few
 * times a second. How many stay is bounded: the oldest go before their time when there are more.
 * So an instruction that needs several pages at once gets on, however few stay at first: those that
 * were dropped too early outlast the others.
 *
 * A table and nothing else: who is taken out of it is dropped by others. One thread uses it.
 */
#ifndef UFFDB_LENT_H
#define UFFDB_LENT_H

#include <stdbool.h>
#include <stdint.h>

#define UFFDB_LENT_TERMS 5    /* a page may stay 20 ms, 40, 80, 160, 320 */
#define UFFDB_LENT_ROOM	 256  /* pages of a term; a power of two */
#define UFFDB_LENT_PAST	 1024 /* pages that were dropped, and are remembered */

struct uffdb_lent_page {
	uint64_t hva;
	uint64_t until_ns; /* it may stay; or once dropped, a read of it counts as one again */
	uint64_t told;	   /* the ledger's epoch in which its read was told of; 0: it was not */
	uint32_t term;
};

/* As they all stay equally long, the first that came is the first to go. */
struct uffdb_lent_queue {
	struct uffdb_lent_page pages[UFFDB_LENT_ROOM];
	uint64_t first, end; /* count on, over the end of @pages */
	bool crowded;	     /* there were too many: half of them are to go */
};

/* Pages of one size. */
struct uffdb_lent_sized {
	uint64_t page_bytes;
	uint32_t most_at_first, most_again; /* of the first term, and of each other */
	struct uffdb_lent_queue queues[UFFDB_LENT_TERMS];
	struct uffdb_lent_page past[UFFDB_LENT_PAST]; /* by the page's number */
};

struct uffdb_lent {
	struct uffdb_lent_sized sizes[2];
	uint64_t nr;
};

void uffdb_lent_init(struct uffdb_lent *lent);

/*
 * Lend a page of 4 KiB or 2 MiB.
 * @told: see struct uffdb_lent_page
 *
 * Return: false when there is no room: take some out, and try again.
 */
bool uffdb_lent_add(struct uffdb_lent *lent, uint64_t hva, uint64_t size, uint64_t now_ns,
		    uint64_t told);

/* Was this page dropped, after a read of it was told of in this epoch? Others may be forgotten. */
bool uffdb_lent_was_told(const struct uffdb_lent *lent, uint64_t hva, uint64_t size,
			 uint64_t epoch);

/* Take one out that is to go. False when there is none. */
bool uffdb_lent_take(struct uffdb_lent *lent, uint64_t now_ns, uint64_t *hva, uint64_t *size);

/*
 * When to look for such again; 0: never. In steps of 10 ms, so that a reader that goes on seldom
 * changes it.
 */
uint64_t uffdb_lent_deadline(const struct uffdb_lent *lent);

#endif
