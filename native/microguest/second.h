/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Touches by the second processor, one stretch at a time. */
#ifndef MICROGUEST_SECOND_H
#define MICROGUEST_SECOND_H

#include "memory.h"
#include "traps.h"

/* Begin memory_touch() there, and go on. Return: NULL, or why not. */
const char *second_begin(const struct memory_span *span, bool write);

/* How many words it has accessed since second_begin(). */
uint64_t second_done(void);

/* Wait until it has accessed them all. Return: NULL, or the exception that ended it. */
const struct traps_exception *second_wait(struct memory_touch *touch);

#endif
