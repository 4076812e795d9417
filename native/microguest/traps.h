/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_TRAPS_H
#define MICROGUEST_TRAPS_H

/* Exceptions answer the command that raised them with `err`; of the interrupts only COM1's is on.
 */
void traps_init(void);

/* Use the same table on another processor. */
void traps_load(void);

#endif
