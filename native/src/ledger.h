/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of the library ask of a ledger, beside what it offers. */
#ifndef UFFDB_LEDGER_H
#define UFFDB_LEDGER_H

#include <stdatomic.h>

#include "uffdballoon.h"

const struct uffdb_block *uffdb_ledger_block(const struct uffdb_ledger *ledger, uint64_t hva);
const struct uffdb_block *uffdb_ledger_blocks(const struct uffdb_ledger *ledger, size_t *nr);
/* An empty one over the same RAM blocks, as the driver sees them: of pages of 4 KiB. */
int uffdb_ledger_create_of_pages(const struct uffdb_ledger *ledger, struct uffdb_ledger **out);
/* How large a page of it is, in bytes: the least that can be given up or answered. */
uint64_t uffdb_block_page(const struct uffdb_block *block);
/* Is a range made of whole pages of one RAM block? 0; -ENOENT outside, or empty; -EINVAL. */
int uffdb_ledger_check(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);
/* Number of 2 MiB blocks of the address space that a RAM block reaches into. */
uint64_t uffdb_block_units(const struct uffdb_block *block);
/* Where the contract's state is kept for whoever comes after us; NULL without a file. */
struct uffdb_contract *uffdb_ledger_contract(struct uffdb_ledger *ledger);
/* Keep it there. */
void uffdb_ledger_keep_contract(struct uffdb_ledger *ledger, const struct uffdb_contract *contract);
/* The same, of what is being taken by uffdb_engine_inflate() and not zapped yet; empty: nothing. */
struct uffdb_range *uffdb_ledger_inflating(struct uffdb_ledger *ledger);
/* The same, of the monitor. */
struct uffdb_monitor_notes {
	_Atomic uint64_t reset_ns; /* CLOCK_MONOTONIC of a reset that has no effect yet, or 0 */
	_Atomic int64_t clock_ahead_ns; /* of CLOCK_REALTIME when it was read last, or 0 */
};
struct uffdb_monitor_notes *uffdb_ledger_notes(struct uffdb_ledger *ledger);
/* In the file of a ledger, beside it: they may outlive it. */
int uffdb_ledger_map_notes(int fd, struct uffdb_monitor_notes **out);
void uffdb_ledger_unmap_notes(struct uffdb_monitor_notes *notes);
/* Another number, and never 0, once any page has left the ledger. */
uint64_t uffdb_ledger_epoch(const struct uffdb_ledger *ledger);
/* Mark as if the pages of @range, of one RAM block, had just been set. */
void uffdb_ledger_mark(struct uffdb_ledger *ledger, const struct uffdb_range *range);
/* Was any page set since the marks were begun to be taken? One consumer. */
bool uffdb_ledger_is_marked(const struct uffdb_ledger *ledger);
bool uffdb_ledger_begin_marks(struct uffdb_ledger *ledger);
/* 64 of those 2 MiB blocks: in which was a page set since the last time? */
uint64_t uffdb_ledger_take_marks(struct uffdb_ledger *ledger, size_t index, uint64_t word);

#endif
