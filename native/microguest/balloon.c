// SPDX-License-Identifier: GPL-2.0-or-later
/* A driver for the legacy virtio-balloon (virtio 1.2, 5.5; legacy interface: 4.1.4.10). */
#include "balloon.h"
#include "io.h"
#include "pci.h"
#include "virtqueue.h"

enum {
	VENDOR = 0x1af4,
	DEVICE = 0x1002,

	PORTS = 0xc000,
	HOST_FEATURES = PORTS + 0x00,
	GUEST_FEATURES = PORTS + 0x04,
	QUEUE_PFN = PORTS + 0x08,
	QUEUE_ENTRIES = PORTS + 0x0c,
	QUEUE_SELECT = PORTS + 0x0e,
	QUEUE_NOTIFY = PORTS + 0x10,
	STATUS = PORTS + 0x12,
	TARGET_PAGES = PORTS + 0x14,
	ACTUAL_PAGES = PORTS + 0x18,

	STATUS_ACKNOWLEDGE = 0x1,
	STATUS_DRIVER = 0x2,
	STATUS_DRIVER_OK = 0x4,

	QUEUES = 2,
	MOST_FRAMES = 1024,
	PAGE_SHIFT = 12,
};

static struct virtqueue queues[QUEUES];
static uint32_t frames[MOST_FRAMES];
static uint32_t actual_pages;
static int present;

static int start_queue(uint16_t number)
{
	struct virtqueue *const queue = &queues[number];

	out16(QUEUE_SELECT, number);
	queue->entries = in16(QUEUE_ENTRIES);
	if (!queue->entries || queue->entries > VIRTQUEUE_MAX)
		return -1;
	virtqueue_silence(queue);
	out32(QUEUE_PFN, (uint32_t)((uint64_t)queue->memory >> PAGE_SHIFT));
	return 0;
}

int balloon_init(void)
{
	if (pci_enable_ports(VENDOR, DEVICE, PORTS))
		return -1;
	out8(STATUS, 0);
	out8(STATUS, STATUS_ACKNOWLEDGE);
	out8(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	out32(GUEST_FEATURES, 0);
	for (uint16_t number = 0; number < QUEUES; number++) {
		if (start_queue(number))
			return -1;
	}
	out8(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK);
	present = 1;
	return 0;
}

int balloon_read_state(struct balloon_state *state)
{
	if (!present)
		return -1;
	state->features = in32(HOST_FEATURES);
	state->queue_entries = queues[BALLOON_INFLATE].entries;
	state->target_pages = in32(TARGET_PAGES);
	state->actual_pages = actual_pages;
	return 0;
}

static void send_batch(enum balloon_queue number, uint64_t gpa, uint32_t pages, uint64_t stride)
{
	struct virtqueue *const queue = &queues[number];

	for (uint32_t i = 0; i < pages; i++, gpa += stride)
		frames[i] = (uint32_t)(gpa >> PAGE_SHIFT);
	virtqueue_give(queue, frames, pages * sizeof(frames[0]));
	out16(QUEUE_NOTIFY, number);
	virtqueue_wait(queue);
}

static void count(enum balloon_queue number, uint32_t pages)
{
	if (number == BALLOON_INFLATE)
		actual_pages += pages;
	else
		actual_pages -= pages < actual_pages ? pages : actual_pages;
	out32(ACTUAL_PAGES, actual_pages);
}

int balloon_change(enum balloon_queue number, uint64_t gpa, uint64_t pages, uint64_t stride,
		   uint64_t together)
{
	uint64_t left = pages;

	if (!present)
		return -1;
	if (!together || together > MOST_FRAMES)
		together = MOST_FRAMES;
	while (left) {
		const uint32_t batch = (uint32_t)(left < together ? left : together);

		send_batch(number, gpa, batch, stride);
		count(number, batch); /* after each, as Linux does */
		gpa += batch * stride;
		left -= batch;
	}
	return 0;
}
