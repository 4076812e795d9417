// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ring.h"
#include "uffdballoon.h"

_Static_assert(sizeof(struct uffdb_event) == 64, "one cache line a record");

struct uffdb_ring {
	uint32_t mask;
	int fd;
	_Atomic bool consumer_waits;	    /* set by the consumer; whoever clears it wakes it */
	_Alignas(64) _Atomic uint64_t head; /* next to write */
	_Alignas(64) _Atomic uint64_t tail; /* next to read */
	_Alignas(64) struct uffdb_event records[];
};

int uffdb_ring_create(uint32_t records, struct uffdb_ring **out)
{
	size_t size = sizeof(struct uffdb_ring) + (size_t)records * sizeof(struct uffdb_event);
	struct uffdb_ring *ring;

	if (!records || records & (records - 1))
		return -EINVAL;
	ring = aligned_alloc(64, size);
	if (!ring)
		return -ENOMEM;
	memset(ring, 0, size); /* all of its memory now, and no page fault in the fault loop */
	ring->mask = records - 1;
	ring->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ring->fd < 0) {
		free(ring);
		return -errno;
	}
	atomic_init(&ring->consumer_waits, true);
	atomic_init(&ring->head, 0);
	atomic_init(&ring->tail, 0);
	*out = ring;
	return 0;
}

void uffdb_ring_destroy(struct uffdb_ring *ring)
{
	if (!ring)
		return;
	close(ring->fd);
	free(ring);
}

int uffdb_ring_fd(const struct uffdb_ring *ring)
{
	return ring->fd;
}

bool uffdb_ring_post(struct uffdb_ring *ring, const struct uffdb_event *event)
{
	uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
	uint64_t one = 1;

	if (head - atomic_load_explicit(&ring->tail, memory_order_acquire) > ring->mask)
		return false;
	ring->records[head & ring->mask] = *event;
	/* Sequentially consistent, against the consumer's "waits, then looks once more". */
	atomic_store(&ring->head, head + 1);
	if (atomic_exchange(&ring->consumer_waits, false)) {
		ssize_t written = write(ring->fd, &one, sizeof(one));
		(void)written; /* only a full counter fails, and that is readable, too */
	}
	return true;
}

static size_t take_events(struct uffdb_ring *ring, struct uffdb_event *events, size_t nr)
{
	uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	uint64_t ready = atomic_load(&ring->head) - tail;

	if (nr > ready)
		nr = ready;
	for (size_t i = 0; i < nr; i++)
		events[i] = ring->records[(tail + i) & ring->mask];
	atomic_store_explicit(&ring->tail, tail + nr, memory_order_release);
	return nr;
}

size_t uffdb_ring_drain(struct uffdb_ring *ring, struct uffdb_event *events, size_t nr)
{
	size_t taken = take_events(ring, events, nr);
	uint64_t count;
	ssize_t got;

	if (taken)
		return taken;
	got = read(ring->fd, &count, sizeof(count));
	(void)got; /* EAGAIN: nobody had written */
	atomic_store(&ring->consumer_waits, true);
	return take_events(ring, events, nr);
}
