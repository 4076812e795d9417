// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Capabilities belong to a thread, and a thread can only change its own (capset(2)). So each
 * thread of the process is sent a signal, whose handler drops them. That the drop is done is
 * read back from the kernel, for every thread that there is by then.
 *
 * A thread that blocks UFFDB_DROP_SIGNAL keeps what it has: the call fails. The library's own,
 * which block all others, leave it open.
 */
#include <dirent.h>
#include <errno.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "signals.h"
#include "uffdballoon.h"

#define PATIENCE_NS 5000000000ull
#define PAUSE_NS    1000000

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t kept;

static int get(int tid, uint64_t *permitted, uint64_t *inheritable)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, tid};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &header, data))
		return -errno;
	*permitted = (uint64_t)data[1].permitted << 32 | data[0].permitted;
	*inheritable = (uint64_t)data[1].inheritable << 32 | data[0].inheritable;
	return 0;
}

/* Without an inheritable one there is no ambient one either (capabilities(7)). */
static int drop_own(uint64_t keep)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};
	uint64_t permitted = 0, inheritable = 0;
	int error = get(0, &permitted, &inheritable);

	if (error)
		return error;
	permitted &= keep;
	data[0].permitted = data[0].effective = (uint32_t)permitted;
	data[1].permitted = data[1].effective = (uint32_t)(permitted >> 32);
	return syscall(SYS_capset, &header, data) ? -errno : 0;
}

/* It may interrupt anything: nothing but system calls, and errno is the interrupted code's. */
static void on_signal(int signal)
{
	int before = errno;

	(void)signal;
	drop_own(atomic_load(&kept));
	errno = before;
}

/* 1: the thread holds more than it shall; 0: not, or it has ended. */
static int holds_more(int tid, uint64_t keep)
{
	uint64_t permitted = 0, inheritable = 0;
	int error = get(tid, &permitted, &inheritable);

	if (error)
		return error == -ESRCH ? 0 : error;
	return permitted & ~keep || inheritable;
}

static int drop_of(int tid, uint64_t keep)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};
	uint64_t deadline_ns = uffdb_now_ns(CLOCK_MONOTONIC) + PATIENCE_NS;
	int more;

	if (syscall(SYS_tgkill, getpid(), tid, UFFDB_DROP_SIGNAL))
		return errno == ESRCH ? 0 : -errno;
	while ((more = holds_more(tid, keep)) > 0) {
		if (uffdb_now_ns(CLOCK_MONOTONIC) > deadline_ns)
			return -ETIMEDOUT;
		nanosleep(&pause, NULL);
	}
	return more;
}

/* Return: how many threads held more than they shall, or -errno. */
static int drop_of_all(uint64_t keep)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *entry;
	int found = 0, error = 0;

	if (!tasks)
		return -errno;
	while (!error && (entry = readdir(tasks))) {
		int tid = atoi(entry->d_name), more = tid ? holds_more(tid, keep) : 0;

		found += more > 0;
		error = more > 0 ? drop_of(tid, keep) : more;
	}
	closedir(tasks);
	return error ? error : found;
}

int uffdb_keep_capabilities(uint64_t keep)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
	int found, error;

	pthread_mutex_lock(&one_at_a_time);
	atomic_store(&kept, keep);
	sigfillset(&action.sa_mask);
	error = sigaction(UFFDB_DROP_SIGNAL, &action, &before) ? -errno : drop_own(keep);
	/* A thread that was made meanwhile, by one that had not dropped yet, is found later. */
	do {
		found = error ? error : drop_of_all(keep);
	} while (found > 0);
	if (!error)
		sigaction(UFFDB_DROP_SIGNAL, &before, NULL);
	pthread_mutex_unlock(&one_at_a_time);
	return found;
}

int uffdb_held_capabilities(uint64_t *held)
{
	uint64_t inheritable = 0;

	return get(0, held, &inheritable);
}
