/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Huge pages that the driver gives up in pieces of 4 KiB. QEMU discards none of them
 * (virtio_balloon_inflate_page() of hw/virtio/virtio-balloon.c); gather.c does. Knows nothing of
 * engines. The fault loop's; any thread may read and count.
 */
#ifndef UFFDB_PIECES_H
#define UFFDB_PIECES_H

#include "uffdballoon.h"

struct uffdb_pieces {
	/* For certain in the driver's balloon: its count told so, and no line was lost since. */
	struct uffdb_ledger *given;
	struct uffdb_ledger *whole;   /* blocks that are in the balloon for that */
	struct uffdb_ledger *waiting; /* of these: to be punched out of their file */
	struct uffdb_ledger *guarded; /* of these: write-protected */
	uint64_t guarded_ns;	      /* CLOCK_MONOTONIC: since then, all of them */
};

/* @out: NULL where no page is huge. */
int uffdb_pieces_create(const struct uffdb_ledger *ledger, struct uffdb_pieces **out);
void uffdb_pieces_destroy(struct uffdb_pieces *pieces);

/* Are all pieces of a huge page given? */
bool uffdb_pieces_are_all(const struct uffdb_pieces *pieces, uint64_t block);

/* A block came into the balloon, and is to be punched. */
void uffdb_pieces_wait(struct uffdb_pieces *pieces, uint64_t block);

/* It was punched. */
void uffdb_pieces_punched(struct uffdb_pieces *pieces, uint64_t block);

/* Blocks that left the balloon. Their pieces are given for as long as they are. */
void uffdb_pieces_leave(struct uffdb_pieces *pieces, uint64_t hva, uint64_t len);

/* The same, and of their pieces nothing is known any more: they were touched, or are somebody's. */
void uffdb_pieces_forget(struct uffdb_pieces *pieces, uint64_t hva, uint64_t len);

#endif
