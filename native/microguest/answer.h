/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_ANSWER_H
#define MICROGUEST_ANSWER_H

#include <stdint.h>

/*
 * One line of answer: `ok` or `err` and words, then ` name=0x...` for each number. It is put
 * together in memory and written at its end, so that an exception on the way leaves no half of it.
 */
void answer_begin(const char *words);
void answer_words(const char *words);
void answer_hex(const char *name, uint64_t value);
void answer_range(const char *name, uint64_t start, uint64_t end);
void answer_end(void);

#endif
