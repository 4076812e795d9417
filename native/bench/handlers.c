// SPDX-License-Identifier: GPL-2.0-or-later
/* Two handlers to be measured against: the manual's, and the best that knows nothing of balloons.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../src/kernel_compat.h"
#include "../src/pages.h"
#include "../src/signals.h"
#include "bench.h"
#include "uffdballoon.h"

#define STOP_POLL_NS 1000000

struct uffdb_bench_handler {
	int uffd;
	uint32_t kind;
	uint64_t page_size;
	int cpu;
	int flags; /* that the fd had before */
	void *page;
	pthread_t thread;
	uint64_t answered;
	_Atomic bool stop, stopped;
};

/* userfaultfd(2), EXAMPLES: one message at a time, and a copy of a page of ours. */
static void *manpage_loop(void *argument)
{
	struct uffdb_bench_handler *handler = argument;
	struct pollfd wait = {.fd = handler->uffd, .events = POLLIN};
	struct uffd_msg message;

	while (!atomic_load(&handler->stop)) {
		uint64_t hva;

		if (poll(&wait, 1, -1) < 1)
			continue;
		if (read(handler->uffd, &message, sizeof(message)) != sizeof(message))
			continue;
		hva = message.arg.pagefault.address & ~(handler->page_size - 1);
		if (uffdb_uffd_copy(handler->uffd, hva, handler->page, handler->page_size, 0))
			uffdb_uffd_wake(handler->uffd, hva, handler->page_size);
		handler->answered++;
	}
	atomic_store(&handler->stopped, true);
	return NULL;
}

static void *best_loop(void *argument)
{
	struct uffdb_bench_handler *handler = argument;
	bool copy = handler->page_size != UFFDB_PAGE;
	struct uffd_msg message;
	cpu_set_t set;

	CPU_ZERO(&set);
	if (handler->cpu >= 0) {
		CPU_SET((size_t)handler->cpu, &set);
		sched_setaffinity(0, sizeof(set), &set);
	}
	while (!atomic_load(&handler->stop)) {
		uint64_t hva;
		int error;

		if (read(handler->uffd, &message, sizeof(message)) != sizeof(message))
			continue;
		hva = message.arg.pagefault.address & ~(handler->page_size - 1);
		if (copy)
			error = uffdb_uffd_copy(handler->uffd, hva, handler->page,
						handler->page_size, 0);
		else
			error = uffdb_uffd_zeropage(handler->uffd, hva, handler->page_size, 0);
		if (error)
			uffdb_uffd_wake(handler->uffd, hva, handler->page_size);
		handler->answered++;
	}
	atomic_store(&handler->stopped, true);
	return NULL;
}

static void do_nothing(int signal)
{
	(void)signal;
}

int uffdb_bench_handler_start(int uffd, uint32_t kind, uint64_t page_size, int cpu,
			      struct uffdb_bench_handler **out)
{
	struct uffdb_bench_handler *handler = calloc(1, sizeof(*handler));
	struct sigaction action = {.sa_handler = do_nothing};
	int error;

	if (!handler)
		return -ENOMEM;
	*handler = (struct uffdb_bench_handler){
		.uffd = uffd, .kind = kind, .page_size = page_size, .cpu = cpu};
	sigaction(UFFDB_WAKE_SIGNAL, &action, NULL);
	handler->page =
		mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (handler->page == MAP_FAILED) {
		free(handler);
		return -ENOMEM;
	}
	memset(handler->page, 0, page_size);
	handler->flags = fcntl(uffd, F_GETFL);
	/* poll() on a userfaultfd that blocks answers POLLERR (fs/userfaultfd.c). */
	if (kind == UFFDB_BENCH_MANPAGE)
		fcntl(uffd, F_SETFL, handler->flags | O_NONBLOCK);
	error = pthread_create(&handler->thread, NULL,
			       kind == UFFDB_BENCH_MANPAGE ? manpage_loop : best_loop, handler);
	if (error) {
		munmap(handler->page, page_size);
		free(handler);
		return -error;
	}
	*out = handler;
	return 0;
}

uint64_t uffdb_bench_handler_stop(struct uffdb_bench_handler *handler)
{
	struct timespec pause = {.tv_nsec = STOP_POLL_NS};
	uint64_t answered;

	atomic_store(&handler->stop, true);
	while (!atomic_load(&handler->stopped)) {
		pthread_kill(handler->thread, UFFDB_WAKE_SIGNAL);
		nanosleep(&pause, NULL);
	}
	pthread_join(handler->thread, NULL);
	fcntl(handler->uffd, F_SETFL, handler->flags);
	munmap(handler->page, handler->page_size);
	answered = handler->answered;
	free(handler);
	return answered;
}
