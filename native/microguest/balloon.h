/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_BALLOON_H
#define MICROGUEST_BALLOON_H

#include <stdint.h>

enum balloon_queue {
	BALLOON_INFLATE,
	BALLOON_DEFLATE
};

struct balloon_state {
	uint32_t features; /* what the device offers; none is taken */
	uint32_t queue_entries;
	uint32_t target_pages; /* what the host wants in the balloon */
	uint32_t actual_pages; /* what the driver said is in it */
};

/* Find and start the device. Return: 0, or -1 when there is none. */
int balloon_init(void);

/* Return: 0, or -1 when there is no device. */
int balloon_read_state(struct balloon_state *state);

/* As many page frames as Linux's driver puts into one buffer. */
#define BALLOON_TOGETHER 256

/*
 * Tell the device of @pages pages from @gpa on, @stride bytes apart, @together in one buffer and at
 * most 1024, and wait until it has dealt with them; then say how many pages are in the balloon.
 * Nothing of it is checked: a driver that gives pages twice, or gives what is not RAM, is what some
 * tests are about. Return: 0, or -1 when there is no device.
 */
int balloon_change(enum balloon_queue queue, uint64_t gpa, uint64_t pages, uint64_t stride,
		   uint64_t together);

#endif
