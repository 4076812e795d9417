/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Both processors walk the same stretch side by side, and access every place of it at once. */
#ifndef MICROGUEST_RACE_H
#define MICROGUEST_RACE_H

#include "memory.h"
#include "traps.h"

/* From the start of a place to the word that the second processor writes. */
#define RACE_SECOND_OFFSET 8

struct race_result {
	uint64_t count; /* of the places where both have been */
	struct memory_check check;
};

/*
 * At every span->stride bytes, read the first word on both processors; or write its gpa's low half
 * there on the first, and the complement at RACE_SECOND_OFFSET on the second. A place is bad when
 * they did not read the same, or when what they wrote is not there once both have written.
 * It waits as long as either of them is held up.
 * @exception: NULL, or what ended it on the second processor
 * Return: NULL, or why not.
 */
const char *race_run(const struct memory_span *span, bool write, struct race_result *result,
		     const struct traps_exception **exception);

/* An exception on the first processor: end the race on the second, if there is one. */
void race_give_up(void);

#endif
