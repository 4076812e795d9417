// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Each thread that the target has is watched on every CPU, inherited by the threads to come
 * (perf_event_open(2); what inherits can be mapped only if it is bound to a CPU). All events of
 * a CPU write to one ring, that of a dummy event which outlives the threads.
 *
 * Nobody is woken by a record: that would cost the target an interrupt each. The doorbells are
 * events of their own, one a thread, with a ring that a few records fill; then they are silent,
 * until uffdb_trace_quiet() empties it. (PERF_EVENT_IOC_REFRESH, which is there for this, does
 * not start a tracepoint again that it stopped: seen with Linux 6.18.)
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "records.h"
#include "uffdballoon.h"

#define ADVICE_FILTER "behavior==3||behavior==4||behavior==9||behavior==24"
#define MAX_PASSES    16  /* over the list of threads, while it changes */
#define MARGIN	      256 /* bytes of room in a ring: with less, a record may have been lost */

struct ring {
	int fd;
	struct perf_event_mmap_page *page;
	char *data;
	uint64_t head, tail; /* as of this drain */
	bool has;	     /* a record was taken from it, and not handed over yet */
	struct uffdb_traced next;
};

struct doorbell {
	int tid;
	int fd;
	void *page;
};

struct perf_trace {
	struct uffdb_trace trace;
	size_t ring_bytes;
	size_t page_bytes;
	int nr_cpus;
	struct ring *rings;
	int *fds; /* of the events that write to the rings */
	size_t nr_fds, room_fds;
	int *tids; /* that are watched */
	size_t nr_tids, room_tids;
	struct doorbell *bells;
	size_t nr_bells, room_bells;
	bool hushed;
	int epoll;
};

static int open_event(struct perf_event_attr *attr, int tid, int cpu)
{
	attr->size = sizeof(*attr);
	attr->use_clockid = 1;
	attr->clockid = CLOCK_MONOTONIC;
	int fd = (int)syscall(SYS_perf_event_open, attr, tid, cpu, -1, PERF_FLAG_FD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static struct perf_event_attr tracepoint(int id)
{
	return (struct perf_event_attr){
		.type = PERF_TYPE_TRACEPOINT,
		.config = (uint64_t)id,
		.sample_period = 1,
		.sample_type = PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_RAW,
		.sample_id_all = 1,
	};
}

/* Make room for one more; a zero for what is new. */
static int grow(void **array, size_t *room, size_t nr, size_t size)
{
	void *larger;

	if (nr < *room)
		return 0;
	larger = realloc(*array, (nr + 64) * 2 * size);
	if (!larger)
		return -ENOMEM;
	*array = larger;
	*room = (nr + 64) * 2;
	return 0;
}

static int keep_fd(struct perf_trace *trace, int fd)
{
	int error = grow((void **)&trace->fds, &trace->room_fds, trace->nr_fds, sizeof(int));

	if (error) {
		close(fd);
		return error;
	}
	trace->fds[trace->nr_fds++] = fd;
	return 0;
}

static int set_filter(int fd, const char *filter)
{
	return filter && ioctl(fd, PERF_EVENT_IOC_SET_FILTER, filter) ? -errno : 0;
}

/* One tracepoint of one thread on one CPU; -ESRCH when the thread has ended. */
static int watch(struct perf_trace *trace, int id, const char *filter, int tid, int cpu)
{
	struct perf_event_attr attr = tracepoint(id);
	int fd, error;

	if (!id)
		return 0;
	attr.inherit = 1;
	fd = open_event(&attr, tid, cpu);
	if (fd == -ENODEV)
		return 0; /* that CPU is offline */
	if (fd < 0)
		return fd;
	error = keep_fd(trace, fd);
	if (!error)
		error = set_filter(fd, filter);
	if (!error && ioctl(fd, PERF_EVENT_IOC_SET_OUTPUT, trace->rings[cpu].fd))
		error = -errno;
	return error;
}

static int watch_thread(struct perf_trace *trace, int tid)
{
	const struct uffdb_trace_config *config = &trace->trace.config;
	int error = 0;

	for (int cpu = 0; !error && cpu < trace->nr_cpus; cpu++) {
		if (trace->rings[cpu].fd < 0)
			continue;
		error = watch(trace, config->enter_madvise, ADVICE_FILTER, tid, cpu);
		if (!error)
			error = watch(trace, config->enter_fallocate, NULL, tid, cpu);
	}
	return error == -ESRCH ? 0 : error;
}

static void empty(struct doorbell *bell)
{
	struct perf_event_mmap_page *page = bell->page;
	uint64_t head = __atomic_load_n(&page->data_head, __ATOMIC_ACQUIRE);

	__atomic_store_n(&page->data_tail, head, __ATOMIC_RELEASE);
}

/* A bell at a thread's discards. Without one, its records wait for the next trap or tick. */
static int hang_bell(struct perf_trace *trace, int id, const char *filter, int tid)
{
	struct perf_event_attr attr = tracepoint(id);
	struct epoll_event event = {.events = EPOLLIN};
	struct doorbell bell = {.tid = tid};
	int error;

	if (!id)
		return 0;
	attr.wakeup_events = 1;
	bell.fd = open_event(&attr, tid, -1);
	if (bell.fd < 0)
		return bell.fd == -ESRCH ? 0 : bell.fd;
	error = set_filter(bell.fd, filter);
	bell.page = error ? MAP_FAILED
			  : mmap(NULL, 2 * trace->page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
				 bell.fd, 0);
	if (!error && bell.page == MAP_FAILED)
		error = -errno;
	if (!error)
		error = grow((void **)&trace->bells, &trace->room_bells, trace->nr_bells,
			     sizeof(bell));
	event.data.fd = bell.fd;
	if (!error && epoll_ctl(trace->epoll, EPOLL_CTL_ADD, bell.fd, &event))
		error = -errno;
	if (error) {
		if (bell.page != MAP_FAILED)
			munmap(bell.page, 2 * trace->page_bytes);
		close(bell.fd);
		return error;
	}
	trace->bells[trace->nr_bells++] = bell;
	return 0;
}

static void take_down_bell(struct perf_trace *trace, size_t index)
{
	munmap(trace->bells[index].page, 2 * trace->page_bytes);
	close(trace->bells[index].fd);
	trace->bells[index] = trace->bells[--trace->nr_bells];
}

static bool is_watched(const struct perf_trace *trace, int tid)
{
	for (size_t i = 0; i < trace->nr_tids; i++)
		if (trace->tids[i] == tid)
			return true;
	return false;
}

static bool has_bell(const struct perf_trace *trace, int tid)
{
	for (size_t i = 0; i < trace->nr_bells; i++)
		if (trace->bells[i].tid == tid)
			return true;
	return false;
}

static int hang_bells(struct perf_trace *trace, int tid)
{
	const struct uffdb_trace_config *config = &trace->trace.config;
	int error = hang_bell(trace, config->enter_madvise, ADVICE_FILTER, tid);

	return error ? error : hang_bell(trace, config->enter_fallocate, NULL, tid);
}

typedef int each_tid_fn(struct perf_trace *trace, int tid);

static int each_tid(struct perf_trace *trace, each_tid_fn *visit)
{
	char path[64];
	struct dirent *entry;
	int error = 0;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", trace->trace.config.pid);
	tasks = opendir(path);
	if (!tasks)
		return errno == ENOENT ? -ESRCH : -errno;
	while (!error) {
		int tid;

		errno = 0;
		entry = readdir(tasks);
		if (!entry) {
			error = -errno; /* 0 at the end */
			break;
		}
		tid = atoi(entry->d_name);
		if (tid)
			error = visit(trace, tid);
	}
	closedir(tasks);
	return error;
}

static int watch_if_new(struct perf_trace *trace, int tid)
{
	int error;

	if (is_watched(trace, tid))
		return 0;
	error = grow((void **)&trace->tids, &trace->room_tids, trace->nr_tids, sizeof(int));
	if (!error)
		error = watch_thread(trace, tid);
	if (!error)
		trace->tids[trace->nr_tids++] = tid;
	return error;
}

static int hang_if_new(struct perf_trace *trace, int tid)
{
	return has_bell(trace, tid) ? 0 : hang_bells(trace, tid);
}

/*
 * Until a whole pass finds no thread that is not watched: whoever starts one from then on is
 * watched, and its thread with it. One that was inherited and is found here, too, tells all
 * twice, which changes nothing.
 */
static int watch_all(struct perf_trace *trace)
{
	for (int pass = 0; pass < MAX_PASSES; pass++) {
		size_t before = trace->nr_tids;
		int error = each_tid(trace, watch_if_new);

		if (error)
			return error;
		if (trace->nr_tids == before)
			return each_tid(trace, hang_if_new);
	}
	return -EAGAIN;
}

static int open_ring(struct perf_trace *trace, int cpu)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.config = PERF_COUNT_SW_DUMMY,
		.sample_type = PERF_SAMPLE_TID | PERF_SAMPLE_TIME,
		.sample_id_all = 1,
		.watermark = 1,
		.wakeup_watermark = (uint32_t)(trace->ring_bytes / 4),
	};
	struct epoll_event event = {.events = EPOLLIN};
	struct ring *ring = &trace->rings[cpu];
	void *page;

	ring->fd = open_event(&attr, -1, cpu);
	if (ring->fd == -ENODEV)
		return 0;
	if (ring->fd < 0)
		return ring->fd;
	page = mmap(NULL, trace->page_bytes + trace->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
		    ring->fd, 0);
	if (page == MAP_FAILED)
		return -errno;
	ring->page = page;
	ring->data = (char *)page + trace->page_bytes;
	event.data.fd = ring->fd;
	return epoll_ctl(trace->epoll, EPOLL_CTL_ADD, ring->fd, &event) ? -errno : 0;
}

/* A guest has dozens of threads, each with an event a CPU. */
static void raise_fd_limit(void)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int open_all(struct perf_trace *trace)
{
	int error = 0;

	trace->rings = calloc((size_t)trace->nr_cpus, sizeof(*trace->rings));
	if (!trace->rings)
		return -ENOMEM;
	for (int cpu = 0; cpu < trace->nr_cpus; cpu++)
		trace->rings[cpu].fd = -1;
	trace->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (trace->epoll < 0)
		return -errno;
	raise_fd_limit();
	for (int cpu = 0; !error && cpu < trace->nr_cpus; cpu++)
		error = open_ring(trace, cpu);
	return error ? error : watch_all(trace);
}

static void perf_destroy(struct uffdb_trace *of)
{
	struct perf_trace *trace = (struct perf_trace *)of;

	while (trace->nr_bells)
		take_down_bell(trace, 0);
	for (size_t i = 0; i < trace->nr_fds; i++)
		close(trace->fds[i]);
	for (int cpu = 0; trace->rings && cpu < trace->nr_cpus; cpu++) {
		if (trace->rings[cpu].page)
			munmap(trace->rings[cpu].page, trace->page_bytes + trace->ring_bytes);
		if (trace->rings[cpu].fd >= 0)
			close(trace->rings[cpu].fd);
	}
	if (trace->epoll >= 0)
		close(trace->epoll);
	free(trace->bells);
	free(trace->tids);
	free(trace->fds);
	free(trace->rings);
	free(trace);
}

static int perf_get_fd(const struct uffdb_trace *of)
{
	return ((const struct perf_trace *)of)->epoll;
}

static void perf_hush(struct uffdb_trace *of)
{
	struct perf_trace *trace = (struct perf_trace *)of;

	for (size_t bell = 0; !trace->hushed && bell < trace->nr_bells; bell++)
		ioctl(trace->bells[bell].fd, PERF_EVENT_IOC_DISABLE, 0);
	trace->hushed = true;
}

/* One whose thread has ended would be readable for ever. */
static void take_down_dead_bells(struct perf_trace *trace)
{
	struct epoll_event rung[16];
	int nr;

	while ((nr = epoll_wait(trace->epoll, rung, 16, 0)) > 0) {
		bool removed = false;

		for (int i = 0; i < nr; i++)
			for (size_t bell = 0; bell < trace->nr_bells; bell++)
				if (rung[i].events & (EPOLLHUP | EPOLLERR) &&
				    trace->bells[bell].fd == rung[i].data.fd) {
					take_down_bell(trace, bell);
					removed = true;
					break;
				}
		if (!removed)
			break;
	}
}

static int perf_quiet(struct uffdb_trace *of)
{
	struct perf_trace *trace = (struct perf_trace *)of;

	take_down_dead_bells(trace);
	for (size_t bell = 0; bell < trace->nr_bells; bell++) {
		empty(&trace->bells[bell]);
		if (trace->hushed && ioctl(trace->bells[bell].fd, PERF_EVENT_IOC_ENABLE, 0))
			return -errno; /* still hushed: to be asked again */
	}
	trace->hushed = false;
	return each_tid(trace, hang_if_new);
}

/* Take the next record of a ring that is ours, up to its head. */
static void advance(const struct perf_trace *trace, struct ring *ring)
{
	const struct uffdb_perf_ring of = {ring->data, trace->ring_bytes, ring->head};

	ring->has = uffdb_next_record(&trace->trace, &of, &ring->tail, &ring->next);
}

static struct ring *earliest(const struct perf_trace *trace)
{
	struct ring *found = NULL;

	for (int cpu = 0; cpu < trace->nr_cpus; cpu++) {
		struct ring *ring = &trace->rings[cpu];

		if (ring->has && (!found || ring->next.time_ns < found->next.time_ns))
			found = ring;
	}
	return found;
}

static uint64_t perf_drain(struct uffdb_trace *of, uffdb_traced_fn *take, void *argument)
{
	struct perf_trace *trace = (struct perf_trace *)of;
	/*
	 * What is later than now stays for the next time: a record of another ring that led to it
	 * may have come after that ring's head was read.
	 */
	uint64_t until_ns = uffdb_now_ns(CLOCK_MONOTONIC), taken = 0;
	bool full = false;
	struct ring *ring;

	for (int cpu = 0; cpu < trace->nr_cpus; cpu++) {
		ring = &trace->rings[cpu];
		if (!ring->page)
			continue;
		ring->head = __atomic_load_n(&ring->page->data_head, __ATOMIC_ACQUIRE);
		full = full || ring->head - ring->tail > trace->ring_bytes - MARGIN;
		if (!ring->has)
			advance(trace, ring);
	}
	while ((ring = earliest(trace)) && ring->next.time_ns <= until_ns) {
		take(argument, &ring->next);
		advance(trace, ring);
		taken++;
	}
	for (int cpu = 0; cpu < trace->nr_cpus; cpu++) {
		ring = &trace->rings[cpu];
		if (ring->page)
			__atomic_store_n(&ring->page->data_tail, ring->tail, __ATOMIC_RELEASE);
	}
	/* The kernel tells of a loss with the first record that fits again, which may be never. */
	if (full) {
		const struct uffdb_traced lost = {.time_ns = until_ns, .kind = UFFDB_TRACED_LOST};

		take(argument, &lost);
		taken++;
	}
	return taken;
}

static const struct uffdb_trace_source PERF = {
	.name = "perf",
	.drain = perf_drain,
	.fd = perf_get_fd,
	.hush = perf_hush,
	.quiet = perf_quiet,
	.destroy = perf_destroy,
};

int uffdb_trace_create_perf(const struct uffdb_trace_config *config, struct uffdb_trace **out)
{
	struct perf_trace *trace = calloc(1, sizeof(*trace));
	int error;

	if (!trace)
		return -ENOMEM;
	trace->epoll = -1;
	trace->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	trace->nr_cpus = (int)sysconf(_SC_NPROCESSORS_CONF);
	trace->ring_bytes = trace->page_bytes;
	while (trace->ring_bytes * (size_t)trace->nr_cpus < config->ring_bytes)
		trace->ring_bytes *= 2;
	error = uffdb_trace_init(&trace->trace, &PERF, config);
	if (!error)
		error = open_all(trace);
	if (error) {
		uffdb_trace_destroy(&trace->trace);
		return error;
	}
	*out = &trace->trace;
	return 0;
}
