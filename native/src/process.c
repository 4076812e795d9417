// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

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
