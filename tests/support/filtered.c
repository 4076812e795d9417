// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Puts seccomp filters on processes, and tells what the kernel makes of calls.
 *
 * usage: filtered run FILE... -- COMMAND...   a filter (struct sock_filter[]) each, the oldest
 * first filtered strict                      enters strict mode and spins filtered calls reads
 * cases, writes results; see calls() filtered vfork                       sleeps uninterruptibly
 * until stdin ends filtered nap                         sleeps 100 ms over and over, a dot each on
 * stdout
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_FILTERS 8
#define MAX_CALLS   64

struct call {
	uint64_t number, args[6];
};

struct shared {
	volatile int64_t results[MAX_CALLS];
	volatile uint32_t made, done, refused;
};

static void read_all(void *into, size_t size)
{
	if (size && fread(into, size, 1, stdin) != 1)
		exit(feof(stdin) ? 0 : 1);
}

static int install(struct sock_filter *code, size_t count)
{
	struct sock_fprog program = {.len = (unsigned short)count, .filter = code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return errno;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) ? errno : 0;
}

static int64_t raw(const struct call *call)
{
	register long r10 __asm__("r10") = (long)call->args[3];
	register long r8 __asm__("r8") = (long)call->args[4];
	register long r9 __asm__("r9") = (long)call->args[5];
	long result = (long)call->number;

	__asm__ volatile("syscall"
			 : "+a"(result)
			 : "D"(call->args[0]), "S"(call->args[1]), "d"(call->args[2]), "r"(r10),
			   "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/*
 * A case: u32 filters, u32 calls, for each filter u32 length and its code, the calls.
 * Its result: u32 errno of the installing, u32 signal that ended it or 0, u32 calls that returned,
 * and their results, i64 each.
 */
static int calls(void)
{
	static struct sock_filter code[MAX_FILTERS][BPF_MAXINSNS];
	struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct call list[MAX_CALLS];
	uint32_t counts[2], lengths[MAX_FILTERS], head[3];

	for (;;) {
		read_all(counts, sizeof(counts));
		if (counts[0] > MAX_FILTERS || counts[1] > MAX_CALLS)
			return 1;
		for (uint32_t i = 0; i < counts[0]; i++) {
			read_all(&lengths[i], sizeof(lengths[i]));
			if (lengths[i] > BPF_MAXINSNS)
				return 1;
			read_all(code[i], lengths[i] * sizeof(code[i][0]));
		}
		read_all(list, counts[1] * sizeof(list[0]));
		memset(shared, 0, sizeof(*shared));
		pid_t child = fork();
		int status;

		if (!child) {
			for (uint32_t i = 0; i < counts[0] && !shared->refused; i++)
				shared->refused = (uint32_t)install(code[i], lengths[i]);
			for (uint32_t i = 0; i < counts[1] && !shared->refused; i++) {
				shared->results[i] = raw(&list[i]);
				shared->made = i + 1;
			}
			shared->done = 1;
			for (;;) /* it may be allowed nothing any more */
				;
		}
		while (!shared->done && waitpid(child, &status, WNOHANG) == 0)
			sched_yield();
		if (shared->done) {
			kill(child, SIGKILL);
			waitpid(child, &status, 0);
		}
		head[0] = shared->refused;
		head[1] = shared->done ? 0 : (uint32_t)WTERMSIG(status);
		head[2] = shared->made;
		fwrite(head, sizeof(head), 1, stdout);
		fwrite((const void *)shared->results, sizeof(int64_t), shared->made, stdout);
		fflush(stdout);
	}
}

static int run(char **argv)
{
	static struct sock_filter code[BPF_MAXINSNS];

	for (; *argv && strcmp(*argv, "--") != 0; argv++) {
		FILE *file = fopen(*argv, "rb");
		size_t count = file ? fread(code, sizeof(code[0]), BPF_MAXINSNS, file) : 0;

		if (!file || install(code, count)) {
			perror(*argv);
			return 1;
		}
		fclose(file);
	}
	execvp(argv[1], argv + 1);
	perror(argv[1]);
	return 1;
}

static int wait_for_a_child(void)
{
	char byte;
	pid_t child = vfork();

	if (!child) {
		while (read(0, &byte, 1) > 0)
			;
		_exit(0);
	}
	pause();
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "run"))
		return run(argv + 2);
	if (!strcmp(mode, "calls"))
		return calls();
	if (!strcmp(mode, "vfork"))
		return wait_for_a_child();
	if (!strcmp(mode, "strict")) {
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
		for (;;)
			;
	}
	if (!strcmp(mode, "nap")) {
		const struct timespec nap = {.tv_nsec = 100000000};

		for (;;) {
			if (nanosleep(&nap, NULL))
				return 1;
			if (write(1, ".", 1) != 1)
				return 1;
		}
	}
	return 2;
}
