// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "process.h"
#include "uffdballoon.h"

/* struct uffdb_range is handed to the kernel as it is. */
_Static_assert(sizeof(struct uffdb_range) == sizeof(struct iovec), "64-bit only");

int uffdb_pidfd_open(int pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : fd;
}

int64_t uffdb_process_read(int pid, uint64_t hva, void *into, size_t len)
{
	struct iovec local = {into, len}, remote = {(void *)(uintptr_t)hva, len};
	ssize_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);

	return got < 0 ? -errno : got;
}

int64_t uffdb_process_write(int pid, uint64_t hva, const void *from, size_t len)
{
	struct iovec local = {(void *)(uintptr_t)from, len};
	struct iovec remote = {(void *)(uintptr_t)hva, len};
	ssize_t put = process_vm_writev(pid, &local, 1, &remote, 1, 0);

	return put < 0 ? -errno : put;
}

int uffdb_pidfd_getfd(int pidfd, int remote_fd)
{
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, remote_fd, 0);

	return fd < 0 ? -errno : fd;
}

int64_t uffdb_process_madvise(int pidfd, const struct uffdb_range *ranges, size_t nr, int advice)
{
	long done = syscall(SYS_process_madvise, pidfd, ranges, nr, advice, 0);

	return done < 0 ? -errno : done;
}

int uffdb_punch_hole(int fd, uint64_t offset, uint64_t len)
{
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	return fallocate(fd, mode, (off_t)offset, (off_t)len) ? -errno : 0;
}

int uffdb_file_system(int fd, uint64_t *type, uint64_t *page_bytes)
{
	struct statfs found;

	if (fstatfs(fd, &found))
		return -errno;
	*type = (uint64_t)found.f_type;
	*page_bytes = (uint64_t)found.f_bsize;
	return 0;
}

void uffdb_process_kill(int pidfd)
{
	/* It fails when there is nothing left to kill. */
	syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

bool uffdb_read_text(int dir_fd, const char *path, char *text, size_t room)
{
	int fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC);
	ssize_t size;

	if (fd < 0)
		return false;
	size = read(fd, text, room - 1);
	close(fd);
	if (size <= 0)
		return false;
	text[size] = 0;
	return true;
}

/* proc(5), /proc/PID/status: VmLck, in KiB. */
int64_t uffdb_locked_bytes(int pid)
{
	char path[32], text[UFFDB_STATUS_BYTES], *field;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (!uffdb_read_text(AT_FDCWD, path, text, sizeof(text)))
		return 0;
	field = strstr(text, "\nVmLck:");
	return field ? strtoll(field + strlen("\nVmLck:"), NULL, 10) * 1024 : 0;
}
