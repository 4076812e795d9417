// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The keeper: a process that holds what a manager must not lose when it dies, and lets go of it
 * when nobody comes for it in time. It is forked from a process with threads, so that nothing
 * here allocates, locks, or returns.
 */
#include <errno.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "uffdballoon.h"

#define MOST_OPEN (UFFDB_MOST_KEPT + 3)

static void close_all_but(const int *kept, size_t nr_kept)
{
	unsigned int from = 0;

	/* In rising order, whatever order they are in. */
	for (size_t n = 0; n < nr_kept; n++) {
		unsigned int next = ~0u;

		for (size_t i = 0; i < nr_kept; i++)
			if ((unsigned int)kept[i] >= from && (unsigned int)kept[i] < next)
				next = (unsigned int)kept[i];
		if (next > from)
			syscall(SYS_close_range, from, next - 1, 0);
		from = next + 1;
	}
	syscall(SYS_close_range, from, ~0u, 0);
}

static void become_nobody(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};

	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	setsid();
	prctl(PR_SET_NAME, "uffdb-keeper");
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	syscall(SYS_capset, &header, none);
}

static bool may_have_it(int connection)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	return !getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &len) &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

static bool hand_over(int connection, const struct uffdb_keeper *keeper)
{
	size_t len = keeper->nr_kept * sizeof(*keeper->kept);
	union {
		char bytes[CMSG_SPACE(sizeof(keeper->kept))];
		struct cmsghdr align;
	} control = {{0}};
	char byte = 'K';
	struct iovec vector = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = CMSG_SPACE(len),
	};
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);

	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(rights), keeper->kept, len);
	return sendmsg(connection, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
}

/* The new manager, or -1: while one is there nobody else is served. */
static int take_next(const struct uffdb_keeper *keeper)
{
	int connection = accept4(keeper->listener, NULL, NULL, SOCK_CLOEXEC);

	if (connection < 0)
		return -1;
	if (may_have_it(connection) && hand_over(connection, keeper))
		return connection;
	close(connection);
	return -1;
}

/* What the manager said, or 0; *@manager is -1 once it is gone. */
static char hear(int *manager)
{
	char word;
	ssize_t got = recv(*manager, &word, 1, MSG_DONTWAIT);

	if (got == 1)
		return word;
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	close(*manager);
	*manager = -1;
	return 0;
}

static int left_ms(uint64_t deadline_ns)
{
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC);

	return now_ns >= deadline_ns ? 0 : (int)((deadline_ns - now_ns) / UFFDB_NS_PER_MS + 1);
}

/*
 * Who waits in a fault is frozen until a manager serves. One that has only taken what is kept, and
 * then dies, does not begin the time anew: not in a row of restarts that all fail, either.
 */
static void keep(const struct uffdb_keeper *keeper)
{
	int manager = keeper->manager;
	uint64_t deadline_ns = 0;
	bool served = true;

	for (;;) {
		struct pollfd fds[] = {
			{.fd = keeper->pidfd, .events = POLLIN},
			/* Who comes while a manager is there waits, and is served when it is not.
			 */
			{.fd = manager < 0 ? keeper->listener : -1, .events = POLLIN},
			{.fd = manager, .events = POLLIN},
		};
		int nr = poll(fds, 3, served ? -1 : left_ms(deadline_ns));
		char word;

		if (nr < 0 && errno != EINTR)
			return;
		if (fds[0].revents || (!nr && !served))
			return;
		if (nr <= 0)
			continue;
		if (fds[1].revents)
			manager = take_next(keeper);
		if (!fds[2].revents)
			continue;
		word = hear(&manager);
		if (word == UFFDB_KEEPER_RELEASE)
			return;
		if (word == UFFDB_KEEPER_SERVES)
			served = true;
		if (manager < 0 && served) {
			served = false;
			deadline_ns = uffdb_now_ns(CLOCK_MONOTONIC) + keeper->hold_ns;
		}
	}
}

int uffdb_keeper_start(const struct uffdb_keeper *keeper)
{
	int open[MOST_OPEN] = {keeper->listener, keeper->manager, keeper->pidfd};
	size_t nr = 3;
	pid_t pid;

	if (keeper->nr_kept > UFFDB_MOST_KEPT)
		return -EINVAL;
	for (uint32_t i = 0; i < keeper->nr_kept; i++)
		open[nr++] = keeper->kept[i];
	pid = fork();
	if (pid)
		return pid < 0 ? -errno : (int)pid;
	close_all_but(open, nr);
	become_nobody();
	keep(keeper);
	/* Before the connection: who waits for our end may count on it. */
	close(keeper->kept[0]);
	_exit(0);
}
