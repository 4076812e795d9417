// SPDX-License-Identifier: GPL-2.0-or-later
#include "answer.h"
#include "serial.h"

static char line[1024];
static uint32_t used;

static void put(char byte)
{
	if (used < sizeof(line) - 3) /* "\r\n" and the end of the string */
		line[used++] = byte;
}

static void put_text(const char *text)
{
	while (*text)
		put(*text++);
}

static void put_hex(uint64_t value)
{
	int shift = 60;

	put_text("0x");
	while (shift > 0 && !(value >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put("0123456789abcdef"[value >> shift & 15]);
}

static void put_name(const char *name)
{
	put(' ');
	put_text(name);
	put('=');
}

void answer_begin(const char *words)
{
	used = 0;
	put_text(words);
}

void answer_words(const char *words)
{
	put_text(words);
}

void answer_hex(const char *name, uint64_t value)
{
	put_name(name);
	put_hex(value);
}

void answer_range(const char *name, uint64_t start, uint64_t end)
{
	put_name(name);
	put_hex(start);
	put('-');
	put_hex(end);
}

void answer_end(void)
{
	line[used++] = '\r';
	line[used++] = '\n';
	line[used] = '\0';
	serial_write(line);
}
