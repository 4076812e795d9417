// SPDX-License-Identifier: GPL-2.0-or-later
#include "virtqueue.h"
#include "io.h"

struct descriptor {
	uint64_t address;
	uint32_t bytes;
	uint16_t flags, next;
};

struct available {
	uint16_t flags, index, ring[];
};

struct used {
	uint16_t flags, index;
};

static struct descriptor *descriptors(struct virtqueue *queue)
{
	return (struct descriptor *)queue->memory;
}

static struct available *available(struct virtqueue *queue)
{
	return (struct available *)(queue->memory + queue->entries * sizeof(struct descriptor));
}

static const volatile struct used *used(const struct virtqueue *queue)
{
	const uint32_t before = queue->entries * sizeof(struct descriptor) +
				(3 + queue->entries) * sizeof(uint16_t);

	return (const volatile struct used *)(queue->memory + ((before + 4095) & ~4095u));
}

void virtqueue_silence(struct virtqueue *queue)
{
	available(queue)->flags = 1; /* VIRTQ_AVAIL_F_NO_INTERRUPT */
}

void virtqueue_give(struct virtqueue *queue, const void *buffer, uint32_t bytes)
{
	struct available *const ring = available(queue);
	const uint16_t slot = queue->given++ & (queue->entries - 1);

	descriptors(queue)[slot] = (struct descriptor){(uint64_t)buffer, bytes, 0, 0};
	ring->ring[slot] = slot;
	__atomic_store_n(&ring->index, queue->given, __ATOMIC_RELEASE);
}

void virtqueue_wait(const struct virtqueue *queue)
{
	while (used(queue)->index != queue->given)
		pause();
}
