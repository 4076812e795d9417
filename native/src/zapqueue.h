/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is there, unused, and is to be zapped by the target: for uffdb_engine_hold_zeros(). The loop
 * puts it there, and whoever holds the loop takes it out.
 */
#ifndef UFFDB_ZAPQUEUE_H
#define UFFDB_ZAPQUEUE_H

#include "engine.h"

/* Put one more behind @nr others, or to the last of them. False when there is no room. */
bool uffdb_queue_range(struct uffdb_range *ranges, uint32_t *nr, size_t room, uint64_t hva,
		       uint64_t len);

/* A write-protected page is to be zapped. Return: false when there is no room; later, then. */
bool uffdb_zap_again(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

#endif
