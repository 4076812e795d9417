/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_SMP_H
#define MICROGUEST_SMP_H

#include <stdbool.h>

#include "traps.h"

#define SMP_PROCESSORS 2

/* What the second processor is given to do. */
typedef void smp_work(void);

/*
 * Make sure that the second processor is there and has nothing to do. It is started when it is
 * first needed: until then it costs the host nothing, and from then on it spins.
 * Return: NULL, or why not.
 */
const char *smp_prepare(void);

/* Have the second processor do @work, and go on; after smp_prepare(). */
void smp_begin(smp_work *work);

/* Is it at work? */
bool smp_busy(void);

/* Did an exception end its last work? True no later than smp_busy() is false. */
bool smp_failed(void);

/* Wait until its work has ended. Return: NULL, or the exception that ended it. */
const struct traps_exception *smp_wait(void);

/* Is this the second processor? */
bool smp_on_second(void);

/* An exception on the second processor: give up what it was doing. */
void smp_fail_second(const struct traps_exception *exception) __attribute__((noreturn));

#endif
