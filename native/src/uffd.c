// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel_compat.h"
#include "pages.h"
#include "uffdballoon.h"

#define LOWEST 0x10000ull /* vm.mmap_min_addr, as distributions have it */

static int uffd_ioctl(int uffd, unsigned long request, void *argument)
{
	return ioctl(uffd, request, argument) ? -errno : 0;
}

/*
 * The filling ioctls tell how far they came in a field of their argument, which
 * holds a negative errno when they came nowhere. The ioctl itself then says
 * EAGAIN whatever the reason was (mm: userfaultfd_copy() and its siblings).
 */
static int filled(int error, int64_t done, uint64_t len)
{
	if (!error)
		return 0;
	if (done < 0)
		return (int)done;
	return done && (uint64_t)done < len ? -EAGAIN : error;
}

int uffdb_uffd_open(int dev_fd)
{
	int fd = dev_fd >= 0 ? ioctl(dev_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC)
			     : (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int uffdb_uffd_api(int uffd, uint64_t features, uint64_t *known)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int error = uffd_ioctl(uffd, UFFDIO_API, &api);

	if (!error)
		*known = api.features;
	return error;
}

/*
 * Registering and unregistering say ENOMEM of a target that has ended (fs/userfaultfd.c, where
 * mmget_not_zero() fails), which is what they say of one without room for mappings. Protecting
 * says ESRCH; at the lowest address that may be mapped nothing of ours is, and nothing is changed.
 */
static int unless_gone(int uffd, int error)
{
	struct uffdio_writeprotect nowhere = {
		.range = {LOWEST, UFFDB_PAGE},
		.mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
	};

	if (error != -ENOMEM)
		return error;
	return uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &nowhere) == -ESRCH ? -ESRCH : error;
}

int uffdb_uffd_register(int uffd, uint64_t hva, uint64_t len, uint32_t modes)
{
	struct uffdio_register request = {.range = {hva, len}, .mode = modes};

	return unless_gone(uffd, uffd_ioctl(uffd, UFFDIO_REGISTER, &request));
}

int uffdb_uffd_unregister(int uffd, uint64_t hva, uint64_t len)
{
	struct uffdio_range range = {hva, len};

	return unless_gone(uffd, uffd_ioctl(uffd, UFFDIO_UNREGISTER, &range));
}

int uffdb_uffd_zeropage(int uffd, uint64_t hva, uint64_t len, uint32_t flags)
{
	struct uffdio_zeropage request = {.range = {hva, len}, .mode = flags & UFFDB_DONTWAKE};
	int error = uffd_ioctl(uffd, UFFDIO_ZEROPAGE, &request);

	return filled(error, request.zeropage, len);
}

int64_t uffdb_fill_zeros(int uffd, uint64_t hva, uint64_t len)
{
	struct uffdio_zeropage request = {.range = {hva, len}};
	int error = uffd_ioctl(uffd, UFFDIO_ZEROPAGE, &request);

	if (!error || request.zeropage > 0)
		return request.zeropage;
	return filled(error, request.zeropage, len);
}

int uffdb_uffd_copy(int uffd, uint64_t hva, const void *src, uint64_t len, uint32_t flags)
{
	struct uffdio_copy request = {.dst = hva, .src = (uintptr_t)src, .len = len, .mode = flags};
	int error = uffd_ioctl(uffd, UFFDIO_COPY, &request);

	return filled(error, request.copy, len);
}

int uffdb_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint32_t flags)
{
	struct uffdio_continue request = {.range = {hva, len}, .mode = flags};
	int error = uffd_ioctl(uffd, UFFDIO_CONTINUE, &request);

	return filled(error, request.mapped, len);
}

int uffdb_uffd_poison(int uffd, uint64_t hva, uint64_t len, uint32_t flags)
{
	struct uffdio_poison request = {.range = {hva, len}, .mode = flags & UFFDB_DONTWAKE};
	int error = uffd_ioctl(uffd, UFFDIO_POISON, &request);

	return filled(error, request.updated, len);
}

int uffdb_uffd_writeprotect(int uffd, uint64_t hva, uint64_t len, bool on)
{
	struct uffdio_writeprotect request = {
		.range = {hva, len},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &request);
}

int uffdb_uffd_wake(int uffd, uint64_t hva, uint64_t len)
{
	struct uffdio_range range = {hva, len};

	return uffd_ioctl(uffd, UFFDIO_WAKE, &range);
}
