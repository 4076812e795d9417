// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A process with memory that does to it what it is told, page by page, as a guest and its
 * QEMU would: a "vCPU" and another thread touch, the main thread gives up and takes back as
 * QEMU's balloon device does. Commands come by standard input, one a line.
 *
 *   tenant BLOCKS                 -> ready START VCPU_TID HOST_TID
 *   r vcpu|host PAGE              -> VALUE       of the first word; bad when the last is another
 *   w vcpu|host PAGE VALUE        -> VALUE       written to both
 *   d PAGE                        -> 0           MADV_DONTNEED: QEMU's balloon_inflate_page()
 *   n PAGE                        -> 0           MADV_WILLNEED: its balloon_deflate_page()
 *   c BLOCK                       -> 0 or errno  MADV_COLLAPSE of 2 MiB
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ull
#define HUGE (2ull << 20)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

struct toucher {
	pthread_t thread;
	sem_t begin, end;
	pid_t tid;
	int write;
	uint64_t page, value;
};

static uint8_t *memory;
static struct toucher vcpu, host;

static void touch(struct toucher *toucher)
{
	volatile uint64_t *first = (volatile uint64_t *)(memory + toucher->page * PAGE);
	volatile uint64_t *last = first + PAGE / sizeof(*first) - 1;

	if (toucher->write)
		*first = *last = toucher->value;
	else
		toucher->value = *first;
	if (*last != toucher->value)
		toucher->value = UINT64_MAX;
}

static void *run(void *argument)
{
	struct toucher *toucher = argument;

	toucher->tid = gettid();
	sem_post(&toucher->end);
	for (;;) {
		sem_wait(&toucher->begin);
		touch(toucher);
		sem_post(&toucher->end);
	}
	return NULL;
}

static void start(struct toucher *toucher)
{
	sem_init(&toucher->begin, 0, 0);
	sem_init(&toucher->end, 0, 0);
	if (pthread_create(&toucher->thread, NULL, run, toucher))
		exit(1);
	while (sem_wait(&toucher->end))
		;
}

static uint64_t do_touch(int write, const char *line)
{
	struct toucher *toucher;
	char who[8];
	uint64_t page, value = 0;

	if (sscanf(line + 1, "%7s %lu %lu", who, &page, &value) < 2)
		return UINT64_MAX;
	toucher = who[0] == 'v' ? &vcpu : &host;
	toucher->write = write;
	toucher->page = page;
	toucher->value = value;
	sem_post(&toucher->begin);
	/* A tracer interrupts this thread, and only this one. */
	while (sem_wait(&toucher->end))
		;
	return toucher->value;
}

/* Only for as long as it takes: khugepaged shall not do the same by itself. */
static uint64_t collapse(uint64_t block)
{
	uint8_t *at = memory + block * HUGE;
	int error;

	if (madvise(at, HUGE, MADV_HUGEPAGE))
		return (uint64_t)errno;
	error = madvise(at, HUGE, MADV_COLLAPSE) ? errno : 0;
	if (madvise(at, HUGE, MADV_NOHUGEPAGE))
		return (uint64_t)errno;
	return (uint64_t)error;
}

static uint64_t serve(const char *line)
{
	uint64_t number = strtoull(line + 1, NULL, 10);

	switch (line[0]) {
	case 'r':
	case 'w':
		return do_touch(line[0] == 'w', line);
	case 'd':
		return madvise(memory + number * PAGE, PAGE, MADV_DONTNEED) ? (uint64_t)errno : 0;
	case 'n':
		/* Fails on anonymous memory of a kernel without swap; it is told all the same. */
		madvise(memory + number * PAGE, PAGE, MADV_WILLNEED);
		return 0;
	case 'c':
		return collapse(number);
	default:
		return UINT64_MAX;
	}
}

int main(int argc, char **argv)
{
	uint64_t size = argc == 2 ? strtoull(argv[1], NULL, 10) * HUGE : 0;
	char line[128];
	uint8_t *raw = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (!size || raw == MAP_FAILED)
		return 1;
	memory = (uint8_t *)(((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1));
	/* A mapping of its own, with nothing of ours beside it that could be merged with it. */
	if (madvise(memory, size, MADV_NOHUGEPAGE))
		return 1;
	start(&vcpu);
	start(&host);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready %lu %d %d\n", (uintptr_t)memory, vcpu.tid, host.tid);
	while (fgets(line, sizeof(line), stdin))
		printf("%lu\n", serve(line));
	return 0;
}
