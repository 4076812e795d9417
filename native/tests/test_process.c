// SPDX-License-Identifier: GPL-2.0-or-later
/* What is done to another process, done to a child. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "uffdballoon.h"

#define PAGE 4096u

static char shared[2 * PAGE] __attribute__((aligned(PAGE)));

static pid_t start_child(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	while (!pid)
		pause();
	return pid;
}

static void reads_and_pins_a_child(void)
{
	struct pollfd ended = {.events = POLLIN};
	char text[8] = "";
	pid_t pid;

	strcpy(shared, "parent");
	pid = start_child();
	strcpy(shared, "other");
	ended.fd = uffdb_pidfd_open(pid);
	CHECK(ended.fd >= 0);
	CHECK(uffdb_process_read(pid, (uintptr_t)shared, text, sizeof(text)) == sizeof(text));
	CHECK(!strcmp(text, "parent"));
	CHECK(uffdb_process_read(pid, 0x1000, text, sizeof(text)) == -EFAULT);
	CHECK(poll(&ended, 1, 0) == 0);
	CHECK(!kill(pid, SIGKILL) && waitpid(pid, NULL, 0) == pid);
	CHECK(poll(&ended, 1, -1) == 1);
	CHECK(uffdb_process_read(pid, (uintptr_t)shared, text, sizeof(text)) == -ESRCH);
	CHECK(uffdb_pidfd_open(pid) == -ESRCH);
	close(ended.fd);
}

static void takes_an_fd_of_itself(void)
{
	int pidfd = uffdb_pidfd_open(getpid()), copy = uffdb_pidfd_getfd(pidfd, 1);

	CHECK(copy > 2);
	CHECK(fcntl(copy, F_GETFD) & FD_CLOEXEC);
	CHECK(uffdb_pidfd_getfd(pidfd, 12345) == -EBADF);
	close(copy);
	close(pidfd);
}

static void lists_what_holds_memory(void)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	struct uffdb_range found[4];
	uint64_t start, next;
	char *memory = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);

	CHECK(pagemap >= 0 && memory != MAP_FAILED);
	start = (uintptr_t)memory;
	memory[PAGE] = memory[2 * PAGE] = memory[5 * PAGE] = 1;
	CHECK(((volatile char *)memory)[7 * PAGE] == 0); /* the zero page is no memory */
	CHECK(uffdb_resident(pagemap, start, start + 8 * PAGE, found, 4, &next) == 2);
	CHECK(next == start + 8 * PAGE);
	CHECK(found[0].start == start + PAGE && found[0].len == 2 * PAGE);
	CHECK(found[1].start == start + 5 * PAGE && found[1].len == PAGE);
	close(pagemap);
}

int main(void)
{
	reads_and_pins_a_child();
	takes_an_fd_of_itself();
	lists_what_holds_memory();
	return 0;
}
