/* SPDX-License-Identifier: GPL-2.0-or-later */
/* relay.c, for the fault loop. */
#ifndef UFFDB_RELAY_H
#define UFFDB_RELAY_H

#include "uffdballoon.h"

/*
 * Wait until all that QEMU's monitor has told so far was looked at.
 *
 * Context: fault thread.
 * Return: CLOCK_MONOTONIC of a reset of the guest that nobody took yet; 0: none.
 */
uint64_t uffdb_relay_take_reset(struct uffdb_relay *relay);

/*
 * Call @call when QEMU tells that a migration begins; NULL: no more, and none is running when this
 * returns. It may wait for the loop.
 */
typedef void uffdb_migration_fn(void *argument);
void uffdb_relay_on_migration(struct uffdb_relay *relay, uffdb_migration_fn *call, void *argument);

#endif
