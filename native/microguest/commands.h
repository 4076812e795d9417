/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_COMMANDS_H
#define MICROGUEST_COMMANDS_H

#include "words.h"

/* Do what the words say, and answer. */
void commands_run(const struct words *words);

/* Answer `err` and why. */
void commands_refuse(const char *why);

#endif
