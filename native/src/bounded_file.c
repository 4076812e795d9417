// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/mount.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uffdballoon.h"

#define FLAGS (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

/* By syscall(2), as in tracefs.c. */
static int configure(int context, uint64_t size)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64, size);
	if (syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", text, 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "mode", "0700", 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -errno;
	return 0;
}

/* A mount without a place: it ends with the last file of it. */
static int mount_detached(uint64_t size)
{
	int context = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), root;

	if (context < 0)
		return -errno;
	root = configure(context, size);
	if (!root) {
		root = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, FLAGS);
		if (root < 0)
			root = -errno;
	}
	close(context);
	return root;
}

int uffdb_bounded_file_open(const char *name, uint64_t size)
{
	int root = mount_detached(size), fd;

	if (root < 0)
		return root;
	fd = openat(root, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		fd = -errno;
	else
		unlinkat(root, name, 0);
	close(root);
	return fd;
}
