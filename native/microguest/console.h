/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_CONSOLE_H
#define MICROGUEST_CONSOLE_H

/* Read a command, answer it in one line, and again. */
void console_run(void) __attribute__((noreturn));

#endif
