// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "uffdballoon.h"

static const char *const USUAL[] = {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"};

static int open_mounted(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct statfs about;

	if (fd >= 0 && (fstatfs(fd, &about) || about.f_type != TRACEFS_MAGIC)) {
		close(fd);
		return -ENODEV;
	}
	return fd < 0 ? -errno : fd;
}

/*
 * A mount without a place: it ends with its fd. By syscall(2), since glibc has these functions from
 * 2.36 only, and the library runs with 2.34 otherwise.
 */
static int open_detached(void)
{
	int context = (int)syscall(SYS_fsopen, "tracefs", FSOPEN_CLOEXEC), fd;

	if (context < 0)
		return -errno;
	fd = syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0)
		     ? -1
		     : (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
	if (fd < 0)
		fd = -errno;
	close(context);
	return fd;
}

int uffdb_tracefs_open(void)
{
	for (size_t i = 0; i < sizeof(USUAL) / sizeof(*USUAL); i++) {
		int fd = open_mounted(USUAL[i]);

		if (fd >= 0)
			return fd;
	}
	return open_detached();
}
