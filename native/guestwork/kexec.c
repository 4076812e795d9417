// SPDX-License-Identifier: GPL-2.0-or-later
/* Start another kernel from this one: at once, or when this one crashes. */
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guestwork.h"

static int open_file(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0)
		die(path);
	return file;
}

/* The command line is what follows, its words joined. */
static const char *join(char **words)
{
	static char line[2048];
	size_t length = 0;

	for (; *words; words++) {
		int added = snprintf(line + length, sizeof(line) - length, "%s%s",
				     length ? " " : "", *words);

		if (added < 0 || (size_t)added >= sizeof(line) - length)
			die("kexec: the command line is too long");
		length += (size_t)added;
	}
	return line;
}

int kexec_main(int argc, char **argv)
{
	bool on_crash = argc > 3 && !strcmp(argv[1], "crash");
	const char *line;

	if (argc < 4 || (!on_crash && strcmp(argv[1], "now"))) {
		fprintf(stderr, "guestwork kexec now|crash KERNEL INITRAMFS [ARGUMENT...]\n");
		return 2;
	}
	line = join(argv + 4);
	if (syscall(SYS_kexec_file_load, open_file(argv[2]), open_file(argv[3]), strlen(line) + 1,
		    line, on_crash ? KEXEC_FILE_ON_CRASH : 0))
		die("kexec_file_load");
	if (on_crash)
		return 0;
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
	die("reboot");
}
