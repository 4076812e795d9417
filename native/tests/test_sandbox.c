// SPDX-License-Identifier: GPL-2.0-or-later
/* What a sandboxed process can still do, and what not: each in a child, for it is for good. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "uffdballoon.h"

static sem_t go;
static const char word[] = "word";

#define REFUSED(call) (errno = 0, (call) < 0 && errno == EPERM)

static void can_do_little(void)
{
	char *const none[] = {NULL};
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0 && page != MAP_FAILED);
	close(fd);
	CHECK(REFUSED(open("/dev/null", O_WRONLY | O_CLOEXEC)));
	CHECK(REFUSED(open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600)));
	CHECK(REFUSED(fork()));
	CHECK(REFUSED(execve("/bin/true", none, none)));
	CHECK(REFUSED(socket(AF_INET, SOCK_STREAM, 0)));
	CHECK(REFUSED(socket(AF_UNIX, SOCK_STREAM, 0)));
	CHECK(REFUSED(kill(getppid(), 0)));
	CHECK(REFUSED(mprotect(page, 4096, PROT_READ | PROT_EXEC)));
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
		      MAP_FAILED &&
	      errno == EPERM);
	CHECK(REFUSED(syscall(SYS_userfaultfd, O_CLOEXEC)));
	CHECK(REFUSED(syscall(SYS_bpf, 0, NULL, 0)));
	CHECK(REFUSED(syscall(SYS_getpid | 0x40000000))); /* the x32 numbers */
}

static void *wait_and_try(void *unused)
{
	(void)unused;
	sem_wait(&go);
	can_do_little();
	return NULL;
}

/* Returns in the child; the parent sees to its end. */
static bool in_child(void)
{
	pid_t pid = fork();
	int status;

	CHECK(pid >= 0);
	if (!pid)
		return true;
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
	return false;
}

static void holds_for_threads_of_before_and_after(void)
{
	struct uffdb_sandbox sandbox = {.target_pid = getpid(), .target_pidfd = -1};
	pthread_t before, after;

	sem_init(&go, 0, 0);
	CHECK(!pthread_create(&before, NULL, wait_and_try, NULL));
	CHECK(!uffdb_sandbox_enter(&sandbox));
	can_do_little();
	sem_post(&go);
	sem_post(&go);
	CHECK(!pthread_create(&after, NULL, wait_and_try, NULL));
	CHECK(!pthread_join(before, NULL) && !pthread_join(after, NULL));
}

static void connects_where_it_may(void)
{
	struct uffdb_sandbox sandbox = {.target_pid = getpid(), .may_connect = true};

	CHECK(!uffdb_sandbox_enter(&sandbox));
	CHECK(socket(AF_UNIX, SOCK_STREAM, 0) >= 0);
	CHECK(REFUSED(socket(AF_INET, SOCK_STREAM, 0)));
}

static void lets_nobody_but_the_target_be_acted_on(void)
{
	pid_t pid = getpid(), other = getppid();
	int pidfd = uffdb_pidfd_open(pid), others = uffdb_pidfd_open(other);
	struct uffdb_sandbox sandbox = {.target_pid = pid, .target_pidfd = pidfd};
	char text[sizeof(word)];
	int copy;

	CHECK(pidfd >= 0 && others >= 0);
	CHECK(!uffdb_sandbox_enter(&sandbox));
	CHECK(uffdb_process_read(pid, (uintptr_t)word, text, sizeof(text)) == sizeof(text));
	CHECK(uffdb_process_read(other, (uintptr_t)word, text, sizeof(text)) == -EPERM);
	copy = uffdb_pidfd_getfd(pidfd, pidfd);
	CHECK(copy >= 0);
	CHECK(uffdb_pidfd_getfd(others, 0) == -EPERM);
	CHECK(uffdb_pidfd_open(other) == -EPERM);
	CHECK(REFUSED(syscall(SYS_ptrace, 0x4206 /* PTRACE_SEIZE */, other, 0, 0)));
}

#ifndef __SANITIZE_THREAD__
static void *wait_to_go(void *unused)
{
	(void)unused;
	sem_wait(&go);
	return NULL;
}

static void drops_capabilities_in_every_thread(void)
{
	pthread_t thread;
	uint64_t held;

	sem_init(&go, 0, 0);
	CHECK(!uffdb_held_capabilities(&held));
	CHECK(!pthread_create(&thread, NULL, wait_to_go, NULL));
	CHECK(!uffdb_keep_capabilities(held & (1ull << 19)));
	CHECK(!uffdb_held_capabilities(&held));
	CHECK(!(held & ~(1ull << 19)));
	CHECK(!uffdb_keep_capabilities(0));
	sem_post(&go);
	CHECK(!pthread_join(thread, NULL));
	CHECK(!uffdb_held_capabilities(&held) && !held);
}
#endif

int main(void)
{
	void (*const tests[])(void) = {
#ifndef __SANITIZE_THREAD__ /* which holds signals back from a thread that waits */
		drops_capabilities_in_every_thread,
#endif
		holds_for_threads_of_before_and_after,
		connects_where_it_may,
		lets_nobody_but_the_target_be_acted_on,
	};

	for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++) {
		if (in_child()) {
			tests[i]();
			_exit(0);
		}
	}
	return 0;
}
