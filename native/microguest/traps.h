/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_TRAPS_H
#define MICROGUEST_TRAPS_H

#include <stdbool.h>
#include <stdint.h>

struct traps_exception {
	uint64_t vector, error, rip, cr2;
};

/* Exceptions answer the command that raised them with `err`; of the interrupts only COM1's is on.
 */
void traps_init(void);

/* Use the same table on another processor. */
void traps_load(void);

/* Answer `err exception`, @where it was and what it was. */
void traps_answer(const char *where, const struct traps_exception *exception);

/* Are interrupts to be enabled between traps_open() and traps_close()? At first they are not. */
void traps_set_interrupts(bool on);
void traps_open(void);
void traps_close(void);

#endif
