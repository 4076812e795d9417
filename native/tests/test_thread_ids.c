// SPDX-License-Identifier: GPL-2.0-or-later
/* Threads of a process in a pid namespace of its own, which know themselves by other ids. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../src/thread_ids.h"
#include "check.h"
#include "uffdballoon.h"

static int told[2];

static void *tell_own_id(void *unused)
{
	int tid = (int)syscall(SYS_gettid);

	(void)unused;
	CHECK(write(told[1], &tid, sizeof(tid)) == sizeof(tid));
	for (;;)
		pause();
}

static pid_t start_with_a_thread(unsigned long namespaces)
{
	pid_t pid = (pid_t)syscall(SYS_clone, namespaces | SIGCHLD, NULL, NULL, NULL, 0);
	pthread_t thread;

	if (pid)
		return pid;
	CHECK(!pthread_create(&thread, NULL, tell_own_id, NULL));
	for (;;)
		pause();
}

static void joins_the_ids_of(pid_t pid, bool foreign)
{
	struct uffdb_thread_ids ids;
	uint32_t here, own_of_main;
	int own;

	CHECK(pid > 0);
	CHECK(read(told[0], &own, sizeof(own)) == sizeof(own));
	uffdb_thread_ids_init(&ids, pid);
	CHECK(ids.foreign == foreign);
	own_of_main = foreign ? 1 : (uint32_t)pid;
	CHECK(uffdb_thread_here(&ids, own_of_main) == (uint32_t)pid);
	here = uffdb_thread_here(&ids, (uint32_t)own);
	CHECK(here != (uint32_t)pid);
	CHECK((here == (uint32_t)own) == !foreign);
	/* Remembered, until it is told that the threads are others. */
	CHECK(uffdb_thread_here(&ids, (uint32_t)own) == here);
	uffdb_thread_ids_forget(&ids);
	CHECK(uffdb_thread_here(&ids, (uint32_t)own) == here);
	/* Who is none of its threads is somebody else, known by the id that was told. */
	CHECK(uffdb_thread_here(&ids, 4194303) == 4194303);
	uffdb_thread_ids_release(&ids);
	CHECK(!kill(pid, SIGKILL) && waitpid(pid, NULL, 0) == pid);
}

int main(void)
{
	pid_t pid;

	CHECK(!pipe(told));
	joins_the_ids_of(start_with_a_thread(0), false);
	pid = start_with_a_thread(CLONE_NEWPID);
	if (pid < 0 && errno == EPERM)
		return SKIPPED; /* without CAP_SYS_ADMIN, as root in a container */
	joins_the_ids_of(pid, true);
	return 0;
}
