// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What runs in the Linux guest (README.md): PID 1, which runs commands for the host, and the
 * work that the guest is given.
 */
#include <stdio.h>
#include <string.h>

#include "guestwork.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *arguments;
} commands[] = {
	{"agent", agent_main, "TTY"},
	{"bench", bench_main, "BYTES SLICES SLICE_MS [thp]"},
	{"hog", hog_main, "[BYTES [SECONDS]]"},
	{"kexec", kexec_main, "now|crash KERNEL INITRAMFS [ARGUMENT...]"},
	{"memory", memory_main, "BYTES SEED SECONDS"},
	{"port", port_main, "PORT VALUE"},
	{"scatter", scatter_main, "BYTES SLICE_MS"},
};

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0); // the host reads line by line, through a pipe
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (argc > 1 && !strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		fprintf(stderr, "guestwork %s %s\n", commands[i].name, commands[i].arguments);
	return 2;
}
