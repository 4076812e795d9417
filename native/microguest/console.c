// SPDX-License-Identifier: GPL-2.0-or-later
#include "console.h"
#include "commands.h"
#include "serial.h"
#include "traps.h"
#include "words.h"

enum {
	LINE_BYTES = 256
};

/* A line that is too long comes out cut; no command is that long, so it is answered with `err`. */
static void read_line(char *line)
{
	int used = 0;

	for (;;) {
		const char byte = serial_read();

		if (byte == '\n')
			break;
		if (byte != '\r' && used < LINE_BYTES - 1)
			line[used++] = byte;
	}
	line[used] = '\0';
}

void console_run(void)
{
	static char line[LINE_BYTES];
	struct words words;

	for (;;) {
		traps_close(); /* as serial_read() wants it */
		serial_write("> ");
		read_line(line);
		traps_open();
		if (!words_cut(line, &words))
			commands_refuse("too many words");
		else if (words.count)
			commands_run(&words);
	}
}
