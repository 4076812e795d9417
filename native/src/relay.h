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

#endif
