/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_MEMORY_H
#define MICROGUEST_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

/* The pattern is made, and checked, in lines of so many bytes. */
#define MEMORY_LINE_BYTES 64

struct memory_span {
	uint64_t gpa, size, stride;
};

struct memory_check {
	uint64_t bad, first_bad_gpa;
};

struct memory_touch {
	uint64_t count, min, total, max; /* the last three in cycles */
};

uint32_t memory_read(uint64_t gpa);
void memory_write(uint64_t gpa, uint32_t value);

/* Write the pattern of @seed into one line of every span->stride bytes. */
void memory_fill(const struct memory_span *span, uint32_t seed);

/* Count the lines that are not as memory_fill() left them. */
void memory_verify(const struct memory_span *span, uint32_t seed, struct memory_check *check);

/* Depends on the value and the place of every word in the lines that it reads. */
uint64_t memory_checksum(const struct memory_span *span);

/*
 * Access one word of every span->stride bytes; a write stores the low half of its gpa.
 * @record_gpa: where the cycles of each go, as 32 bits, or 0
 * @touch:      kept up to date, for another processor to look at
 */
void memory_touch(const struct memory_span *span, bool write, uint64_t record_gpa,
		  struct memory_touch *touch);

#endif
