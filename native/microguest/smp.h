/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_SMP_H
#define MICROGUEST_SMP_H

#include <stdbool.h>

#define SMP_PROCESSORS 2

/* Is this the second processor? */
bool smp_on_second(void);

/* An exception on the second processor: give up what it was doing. */
void smp_fail_second(void) __attribute__((noreturn));

#endif
