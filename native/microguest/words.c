// SPDX-License-Identifier: GPL-2.0-or-later
#include "words.h"

bool words_cut(char *line, struct words *words)
{
	words->count = 0;
	for (;;) {
		while (*line == ' ')
			*line++ = '\0';
		if (!*line)
			return true;
		if (words->count == WORDS_MAX)
			return false;
		words->at[words->count++] = line;
		while (*line && *line != ' ')
			line++;
	}
}

bool words_same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static int digit(char letter)
{
	if (letter >= '0' && letter <= '9')
		return letter - '0';
	letter |= 0x20;
	return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

bool words_hex(const char *word, uint64_t *value)
{
	int digits = 0;

	if (word[0] == '0' && (word[1] | 0x20) == 'x')
		word += 2;
	*value = 0;
	for (; *word; word++, digits++) {
		if (digit(*word) < 0 || digits == 16)
			return false;
		*value = *value << 4 | (uint32_t)digit(*word);
	}
	return digits > 0;
}
