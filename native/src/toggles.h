/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a log's lines mean, which name a page and not which way it went. Knows nothing of engines:
 * observe.c does what is found here.
 */
#ifndef UFFDB_TOGGLES_H
#define UFFDB_TOGGLES_H

#include "uffdballoon.h"

#define UFFDB_TOGGLES 4096 /* that are remembered; Linux's driver tells after 256 at most */

struct uffdb_toggle {
	uint64_t hva;
	bool in;       /* it was taken for an inflate */
	bool doubtful; /* what it was before was not certain */
};

/* What the driver's count says of a toggle. */
enum uffdb_toggle_meaning {
	UFFDB_TOGGLE_RIGHT,	  /* it was what it was taken for */
	UFFDB_TOGGLE_GIVEN_TWICE, /* an inflate of a page that was in the balloon already */
	UFFDB_TOGGLE_IN,	  /* an inflate of one whose deflate was lost */
	UFFDB_TOGGLE_OUT,	  /* a deflate of one whose inflate was lost */
	UFFDB_TOGGLE_UNEXPLAINED, /* the count fits neither way */
};

/* @certain: false where lines were lost in between, and it only seems so. */
typedef void uffdb_meaning_fn(void *argument, const struct uffdb_toggle *toggle, uint32_t meaning,
			      bool certain);

struct uffdb_toggles {
	/*
	 * In the driver's balloon, by what was told. The ledger is not that: a page that was
	 * granted after a touch has left it, and the driver may give it back all the same.
	 */
	struct uffdb_ledger *driver;
	bool sure; /* nothing is in it that is not here */

	struct uffdb_toggle *batch; /* since the driver told its count */
	uint64_t nr, nr_in;	    /* ever in this one; the last UFFDB_TOGGLES are there */
	uint64_t base, latest;	    /* the driver's count: before this batch, and as it was told */
	bool base_is_known;
	bool torn;    /* lines of this batch are lost */
	bool counted; /* the driver told its count: the next toggle begins another batch */
	bool settled; /* and it was explained */
};

int uffdb_toggles_create(const struct uffdb_ledger *ledger, struct uffdb_toggles **out);
void uffdb_toggles_destroy(struct uffdb_toggles *toggles);

/* Before a toggle. Return false when the batch that ends here was never explained. */
bool uffdb_toggles_begin(struct uffdb_toggles *toggles);

/* A page went the other way: return whether into the balloon. */
bool uffdb_toggles_flip(struct uffdb_toggles *toggles, uint64_t hva, bool doubtful);

/* After a reset: what is known to have come later. */
void uffdb_toggles_again(struct uffdb_toggles *toggles, uint64_t hva, bool in);

/* Is what uffdb_toggles_flip() says right, unless the driver lies? */
bool uffdb_toggles_is_certain(const struct uffdb_toggles *toggles);

/* The driver told its count, and what it had told before; @each is called for its batch. */
void uffdb_toggles_count(struct uffdb_toggles *toggles, uint64_t before, uint64_t count,
			 uffdb_meaning_fn *each, void *argument);

void uffdb_toggles_lost(struct uffdb_toggles *toggles);

/* The balloon is empty; @sure: all that came later will be told by uffdb_toggles_again(). */
void uffdb_toggles_reset(struct uffdb_toggles *toggles, bool sure);

#endif
