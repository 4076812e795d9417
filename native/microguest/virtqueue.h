/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_VIRTQUEUE_H
#define MICROGUEST_VIRTQUEUE_H

#include <stdint.h>

#define VIRTQUEUE_MAX 1024 /* what QEMU 10.0 gives a balloon; 128 before, and in 11.1 again */

/*
 * A split queue as a legacy device wants it (virtio 1.2, 2.7.2): one stretch of memory, eight
 * pages of it for up to VIRTQUEUE_MAX entries. Zeroed before use.
 */
struct virtqueue {
	uint8_t memory[8 * 4096] __attribute__((aligned(4096)));
	uint32_t entries;
	uint16_t given;
};

/* Ask for no interrupts: used buffers are polled for. */
void virtqueue_silence(struct virtqueue *queue);

/* Offer one buffer that the device reads. */
void virtqueue_give(struct virtqueue *queue, const void *buffer, uint32_t bytes);

/* Poll until the device has used all that was given. */
void virtqueue_wait(const struct virtqueue *queue);

#endif
