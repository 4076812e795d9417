/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Calls that fail: every call of the library to the system goes through inject.c (the linker's
 * --wrap), where the n-th of a kind can be made to fail. For tests only.
 */
#ifndef UFFDB_TESTS_INJECT_H
#define UFFDB_TESTS_INJECT_H

#include <stdbool.h>
#include <stddef.h>

/* Each is a call by its name; UFFDB_CALLS of CMakeLists.txt has the same list. */
#define INJECT_KINDS(x)                                                                           \
	x(ioctl) x(read) x(pread) x(write) x(open) x(openat) x(mmap) x(syscall) x(epoll_create1)  \
		x(epoll_ctl) x(epoll_wait) x(eventfd) x(opendir) x(readdir) x(stat)               \
			x(timer_create) x(timer_settime) x(sigaction) x(pthread_create) x(calloc) \
				x(malloc) x(realloc) x(aligned_alloc) x(process_vm_readv)         \
					x(faccessat) x(sched_setaffinity)

enum inject_kind {
#define INJECT_NAME(name) INJECT_##name,
	INJECT_KINDS(INJECT_NAME)
#undef INJECT_NAME
	INJECT_NR_KINDS
};

const char *inject_name(enum inject_kind kind);

/* From now on let the @nth call of @kind (from 1) fail with @error; 0: only count. */
void inject_begin(enum inject_kind kind, size_t nth, int error);

/* No more. Return: whether a call was made to fail. */
bool inject_end(void);

/* How many calls of a kind there were since inject_begin(). */
size_t inject_count(enum inject_kind kind);

/* From now on an ioctl that this kernel is not to know fails, as of one that is older. 0: none. */
void inject_unknown_request(unsigned long request);

/* From now on, call @before right before each ioctl of a kind, on its thread. NULL: nothing. */
void inject_before_request(unsigned long request, void (*before)(void));

#endif
