/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is done about a touch, once it is known what it means: it is answered (answer.h), or held
 * (parking.h). It is counted and told before whoever waits for it is woken.
 */
#ifndef UFFDB_SETTLE_H
#define UFFDB_SETTLE_H

#include "engine.h"

/* Act on a violation: what the ladder decides, beginning with rung number @rung. */
void uffdb_settle(struct uffdb_engine *engine, struct uffdb_touch *touch, uint32_t rung);

/*
 * Act on a violation that was held under another ladder, and was taken out: as this one would have,
 * from when it began to be held. One that stays frozen is not told of again.
 */
void uffdb_settle_held(struct uffdb_engine *engine, struct uffdb_held *held);

/* Give a ballooned page back to the guest, and tell of it. */
void uffdb_grant(struct uffdb_engine *engine, const struct uffdb_touch *touch, uint8_t verdict,
		 uint8_t action);

/* Grant by the contract: what is around it may be given, too. */
void uffdb_grant_around(struct uffdb_engine *engine, const struct uffdb_touch *touch);

/* Give a page that is the guest's, alone or with those around it. */
void uffdb_give(struct uffdb_engine *engine, const struct uffdb_touch *touch);
void uffdb_give_around(struct uffdb_engine *engine, const struct uffdb_touch *touch);

/*
 * Try to answer a read with zeros; false when it turns out to be a write, whose
 * page is there by now, write-protected.
 */
bool uffdb_give_zeros(struct uffdb_engine *engine, struct uffdb_touch *touch);

/* Let all that are held in a range try again: it means something else now. */
void uffdb_let_go(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

#endif
