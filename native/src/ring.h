/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events on their way: one producer, the fault loop; one consumer. */
#ifndef UFFDB_RING_H
#define UFFDB_RING_H

#include "uffdballoon.h"

struct uffdb_ring;
int uffdb_ring_create(uint32_t records, struct uffdb_ring **out);
void uffdb_ring_destroy(struct uffdb_ring *ring);
bool uffdb_ring_post(struct uffdb_ring *ring, const struct uffdb_event *event);
size_t uffdb_ring_drain(struct uffdb_ring *ring, struct uffdb_event *events, size_t nr);
int uffdb_ring_fd(const struct uffdb_ring *ring);

#endif
