/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_WORDS_H
#define MICROGUEST_WORDS_H

#include <stdbool.h>
#include <stdint.h>

#define WORDS_MAX 8

/* A command line, cut at its spaces. */
struct words {
	int count;
	char *at[WORDS_MAX];
};

/* Cut @line in place. Return: false when it has more words than any command. */
bool words_cut(char *line, struct words *words);

bool words_same(const char *a, const char *b);

/* Read a hexadecimal number, with or without 0x. Return: false when it is none, or too large. */
bool words_hex(const char *word, uint64_t *value);

#endif
