// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A process with memory to be trapped in: it touches on command and records how long each touch
 * took. Its commands come by standard input, one a line, and are answered by a line each.
 *
 *   uffdb-toucher anon|thp|memfd|hugetlb BYTES THREADS
 *     -> ready START BYTES RECORDS_FD
 *   touch r|w STRIDE COUNT   every thread touches COUNT places of its own, STRIDE bytes apart
 *     -> ok NANOSECONDS      of the whole; each touch is in the records, by thread: ns as u32
 *   fill                     write to every page
 *   zap                      drop every page, at once
 *   zap-by madvise|process_madvise BYTES STRIDE    drop BYTES at every STRIDE, range by range
 *     -> ok NANOSECONDS
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define HUGE	     (2ull << 20)
#define PAGE	     4096ull
#define MAX_THREADS  16
#define MAX_RECORDS  (1u << 20) /* a thread */
#define BATCH	     1024	/* ranges that process_madvise(2) takes (UIO_MAXIOV) */
#define NS_PER_S     1000000000ull
#define PROCESS_SELF -10001 /* PIDFD_SELF_THREAD_GROUP, Linux 6.14 */

static struct {
	uint8_t *memory;
	uint64_t size;
	int fd; /* of shared memory, or -1 */
	int nr_threads;
	uint32_t *records;
	int records_fd;
	pthread_barrier_t begin, end;
	bool write;
	uint64_t stride, count;
} the;

static void die(const char *what)
{
	fprintf(stderr, "toucher: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void touch_all(int thread)
{
	volatile uint8_t *at = the.memory + (uint64_t)thread * the.count * the.stride;
	uint32_t *record = the.records + (size_t)thread * MAX_RECORDS;

	for (uint64_t i = 0; i < the.count; i++, at += the.stride) {
		uint64_t begin = now_ns(), took;

		if (the.write)
			*at = (uint8_t)i;
		else
			(void)*at;
		took = now_ns() - begin;
		record[i] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
	}
}

/* Bound to a CPU each, as the vCPUs of a pinned guest are: what is compared are the handlers. */
static void bind_to_cpu(int thread)
{
	cpu_set_t allowed, one;
	int wanted, cpu = 0;

	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		die("sched_getaffinity");
	wanted = thread % CPU_COUNT(&allowed);
	for (; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed) && !wanted--)
			break;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		die("sched_setaffinity");
}

static void *run(void *argument)
{
	int thread = (int)(intptr_t)argument;
	char name[16];

	snprintf(name, sizeof(name), "toucher-%d", thread);
	pthread_setname_np(pthread_self(), name);
	bind_to_cpu(thread);
	for (;;) {
		pthread_barrier_wait(&the.begin);
		touch_all(thread);
		pthread_barrier_wait(&the.end);
	}
	return NULL;
}

static void map_memory(const char *backing)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, prot = PROT_READ | PROT_WRITE;
	uint8_t *raw;

	the.fd = -1;
	if (!strcmp(backing, "memfd")) {
		the.fd = memfd_create("toucher", MFD_CLOEXEC);
		if (the.fd < 0 || ftruncate(the.fd, (off_t)(the.size + HUGE)))
			die("memfd_create");
		flags = MAP_SHARED;
	} else if (!strcmp(backing, "hugetlb")) {
		flags |= MAP_HUGETLB;
	}
	raw = mmap(NULL, the.size + HUGE, prot, flags, the.fd, 0);
	if (raw == MAP_FAILED)
		die("mmap");
	the.memory = (uint8_t *)(((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1));
	if (strcmp(backing, "hugetlb") && strcmp(backing, "memfd") &&
	    madvise(the.memory, the.size, strcmp(backing, "thp") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE))
		die("madvise");
}

static void start_threads(void)
{
	size_t size = (size_t)the.nr_threads * MAX_RECORDS * sizeof(*the.records);

	the.records_fd = memfd_create("records", MFD_CLOEXEC);
	if (the.records_fd < 0 || ftruncate(the.records_fd, (off_t)size))
		die("memfd_create");
	the.records = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, the.records_fd, 0);
	if (the.records == MAP_FAILED)
		die("mmap");
	memset(the.records, 0, size / 8); /* not to be faulted in while the clock runs */
	pthread_barrier_init(&the.begin, NULL, (unsigned int)the.nr_threads + 1);
	pthread_barrier_init(&the.end, NULL, (unsigned int)the.nr_threads + 1);
	for (int i = 0; i < the.nr_threads; i++) {
		pthread_t thread;

		errno = pthread_create(&thread, NULL, run, (void *)(intptr_t)i);
		if (errno)
			die("pthread_create");
	}
}

static const char *touch(const char *line)
{
	char access;
	uint64_t begin;

	if (sscanf(line, "touch %c %lu %lu", &access, &the.stride, &the.count) != 3)
		return "touch r|w STRIDE COUNT";
	if (the.count > MAX_RECORDS || the.count * the.stride * (uint64_t)the.nr_threads > the.size)
		return "that is too much";
	the.write = access == 'w';
	begin = now_ns();
	pthread_barrier_wait(&the.begin);
	pthread_barrier_wait(&the.end);
	printf("ok %lu\n", now_ns() - begin);
	return NULL;
}

static const char *fill(void)
{
	for (uint64_t at = 0; at < the.size; at += PAGE)
		*(volatile uint64_t *)(the.memory + at) = at + 1;
	printf("ok\n");
	return NULL;
}

static const char *zap(void)
{
	if (the.fd >= 0) {
		if (fallocate(the.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			      (off_t)(the.size + HUGE)))
			return strerror(errno);
	} else if (madvise(the.memory, the.size, MADV_DONTNEED)) {
		return strerror(errno);
	}
	printf("ok\n");
	return NULL;
}

static const char *zap_one_by_one(uint64_t bytes, uint64_t stride)
{
	for (uint64_t at = 0; at + bytes <= the.size; at += stride)
		if (madvise(the.memory + at, bytes, MADV_DONTNEED))
			return strerror(errno);
	return NULL;
}

static const char *zap_by_batches(uint64_t bytes, uint64_t stride)
{
	struct iovec ranges[BATCH];
	size_t nr = 0;

	for (uint64_t at = 0; at + bytes <= the.size; at += stride) {
		ranges[nr++] = (struct iovec){the.memory + at, bytes};
		if (nr < BATCH && at + stride + bytes <= the.size)
			continue;
		if (syscall(SYS_process_madvise, PROCESS_SELF, ranges, nr, MADV_DONTNEED, 0) < 0)
			return strerror(errno);
		nr = 0;
	}
	return NULL;
}

static const char *zap_by(const char *line)
{
	uint64_t bytes, stride, begin;
	const char *failure;
	char how[32];

	if (sscanf(line, "zap-by %31s %lu %lu", how, &bytes, &stride) != 3 || !bytes || !stride)
		return "zap-by madvise|process_madvise BYTES STRIDE";
	begin = now_ns();
	failure = !strcmp(how, "madvise") ? zap_one_by_one(bytes, stride)
					  : zap_by_batches(bytes, stride);
	if (!failure)
		printf("ok %lu\n", now_ns() - begin);
	return failure;
}

static void serve(const char *line)
{
	const char *failure = "no such command";

	if (!strncmp(line, "touch ", 6))
		failure = touch(line);
	else if (!strncmp(line, "zap-by ", 7))
		failure = zap_by(line);
	else if (!strcmp(line, "fill\n"))
		failure = fill();
	else if (!strcmp(line, "zap\n"))
		failure = zap();
	if (failure)
		printf("error %s\n", failure);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[256];

	if (argc != 4) {
		fprintf(stderr, "usage: %s anon|thp|memfd|hugetlb BYTES THREADS\n", argv[0]);
		return 2;
	}
	the.size = strtoull(argv[2], NULL, 10);
	the.nr_threads = atoi(argv[3]);
	if (!the.size || the.size % HUGE || the.nr_threads < 1 || the.nr_threads > MAX_THREADS) {
		fprintf(stderr, "toucher: BYTES are of 2 MiB pages, THREADS 1 to %d\n",
			MAX_THREADS);
		return 2;
	}
	map_memory(argv[1]);
	start_threads();
	printf("ready %lu %lu %d\n", (uintptr_t)the.memory, the.size, the.records_fd);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin))
		serve(line);
	return 0;
}
