/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_SERIAL_H
#define MICROGUEST_SERIAL_H

#include <stdint.h>

/* Needs traps_init(): waiting for input is a `hlt` that COM1's interrupt ends. */
void serial_init(void);

char serial_read(void);
void serial_write(const char *text);

#endif
