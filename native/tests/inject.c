// SPDX-License-Identifier: GPL-2.0-or-later
#include "inject.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

static _Atomic bool armed, fired;
static _Atomic size_t counts[INJECT_NR_KINDS];
static enum inject_kind wanted;
static size_t wanted_nth;
static int wanted_error;
static _Atomic unsigned long unknown_request, awaited_request;
static void (*_Atomic before_request)(void);

const char *inject_name(enum inject_kind kind)
{
	static const char *const names[] = {
#define INJECT_NAME(name) #name,
		INJECT_KINDS(INJECT_NAME)
#undef INJECT_NAME
	};

	return names[kind];
}

void inject_begin(enum inject_kind kind, size_t nth, int error)
{
	for (size_t i = 0; i < INJECT_NR_KINDS; i++)
		counts[i] = 0;
	wanted = kind;
	wanted_nth = nth;
	wanted_error = error;
	fired = false;
	armed = true;
}

bool inject_end(void)
{
	armed = false;
	return fired;
}

size_t inject_count(enum inject_kind kind)
{
	return counts[kind];
}

void inject_unknown_request(unsigned long request)
{
	unknown_request = request;
}

void inject_before_request(unsigned long request, void (*before)(void))
{
	before_request = before;
	awaited_request = before ? request : 0;
}

/* Is this call to fail? Then errno says how. */
static bool fails(enum inject_kind kind)
{
	if (!armed || atomic_fetch_add(&counts[kind], 1) + 1 != wanted_nth || kind != wanted)
		return false;
	fired = true;
	errno = wanted_error;
	return true;
}

#define WRAP(type, failed, name, parameters, arguments) \
	type __real_##name parameters;                  \
	type __wrap_##name parameters;                  \
	type __wrap_##name parameters                   \
	{                                               \
		if (fails(INJECT_##name))               \
			return failed;                  \
		return __real_##name arguments;         \
	}

WRAP(ssize_t, -1, read, (int fd, void *into, size_t size), (fd, into, size))
WRAP(ssize_t, -1, pread, (int fd, void *into, size_t size, off_t at), (fd, into, size, at))
WRAP(ssize_t, -1, write, (int fd, const void *from, size_t size), (fd, from, size))
WRAP(void *, MAP_FAILED, mmap,
     (void *at, size_t size, int protection, int flags, int fd, off_t off),
     (at, size, protection, flags, fd, off))
WRAP(int, -1, epoll_create1, (int flags), (flags))
WRAP(int, -1, epoll_ctl, (int epoll, int what, int fd, struct epoll_event *event),
     (epoll, what, fd, event))
WRAP(int, -1, epoll_wait, (int epoll, struct epoll_event *events, int nr, int ms),
     (epoll, events, nr, ms))
WRAP(int, -1, eventfd, (unsigned int value, int flags), (value, flags))
WRAP(DIR *, NULL, opendir, (const char *path), (path))
WRAP(struct dirent *, NULL, readdir, (DIR * directory), (directory))
WRAP(int, -1, stat, (const char *path, struct stat *about), (path, about))
WRAP(int, -1, timer_create, (clockid_t clock, struct sigevent *event, timer_t *timer),
     (clock, event, timer))
WRAP(int, -1, timer_settime,
     (timer_t timer, int flags, const struct itimerspec *when, struct itimerspec *before),
     (timer, flags, when, before))
WRAP(int, -1, sigaction, (int number, const struct sigaction *action, struct sigaction *before),
     (number, action, before))
WRAP(int, errno, pthread_create,
     (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument),
     (thread, attributes, run, argument))
WRAP(void *, NULL, calloc, (size_t nr, size_t size), (nr, size))
WRAP(void *, NULL, malloc, (size_t size), (size))
WRAP(void *, NULL, realloc, (void *at, size_t size), (at, size))
WRAP(void *, NULL, aligned_alloc, (size_t alignment, size_t size), (alignment, size))
WRAP(ssize_t, -1, process_vm_readv,
     (pid_t pid, const struct iovec *local, unsigned long nr_local, const struct iovec *remote,
      unsigned long nr_remote, unsigned long flags),
     (pid, local, nr_local, remote, nr_remote, flags))
WRAP(int, -1, faccessat, (int directory, const char *path, int mode, int flags),
     (directory, path, mode, flags))
WRAP(int, -1, sched_setaffinity, (pid_t pid, size_t size, const cpu_set_t *cpus), (pid, size, cpus))

/* Those with arguments that may be left out: as many are passed on as any caller here has. */
int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (request == unknown_request) {
		errno = ENOTTY;
		return -1;
	}
	if (request == awaited_request)
		before_request();
	return fails(INJECT_ioctl) ? -1 : __real_ioctl(fd, request, argument);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
	return fails(INJECT_open) ? -1 : __real_open(path, flags);
}

int __real_openat(int directory, const char *path, int flags, ...);
int __wrap_openat(int directory, const char *path, int flags, ...);
int __wrap_openat(int directory, const char *path, int flags, ...)
{
	return fails(INJECT_openat) ? -1 : __real_openat(directory, path, flags);
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
	va_list list;
	long a[5];

	va_start(list, number);
	for (size_t i = 0; i < 5; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	return fails(INJECT_syscall) ? -1 : __real_syscall(number, a[0], a[1], a[2], a[3], a[4]);
}
