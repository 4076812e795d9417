/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When memory was touched last. One writer, the fault loop; any reader. Times are of
 * CLOCK_MONOTONIC, 0: never.
 */
#ifndef UFFDB_TOUCHED_H
#define UFFDB_TOUCHED_H

#include "uffdballoon.h"

struct uffdb_touched;
int uffdb_touched_create(const struct uffdb_ledger *ledger, struct uffdb_touched **out);
void uffdb_touched_destroy(struct uffdb_touched *touched);
void uffdb_touched_note(struct uffdb_touched *touched, uint64_t hva, uint64_t time_ns);
/* The last in a range of one RAM block, rounded outward to 2 MiB of it. */
uint64_t uffdb_touched_last(const struct uffdb_touched *touched, uint64_t hva, uint64_t len);

#endif
