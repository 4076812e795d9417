// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A whole life, from create to destroy, once for every call of it and every errno with which that
 * call can fail. Whatever fails says so, and works when it is tried again; a touch is answered
 * all the same; owned memory keeps what is in it; nothing is left behind.
 *
 * usage: test_failures [all]    every errno at every call, else they take turns
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <time.h>

#include "engine_setup.h"
#include "inject.h"

#define REMOVE_EVENTS 0x8u /* UFFD_FEATURE_EVENT_REMOVE */
#define PATIENCE_S    60
#define TRIES	      3
#define HOLD_NS	      1000000
#define OWNED	      (3 * HUGE) /* here nothing is ever given up */
#define MOST_CALLS    4096

static const int ERRORS[] = {ENOMEM, EAGAIN, EEXIST, ESRCH, EINTR};
#define NR_ERRORS (sizeof(ERRORS) / sizeof(*ERRORS))

/* Where nothing looks for leaks, some of the calls are enough. */
#ifdef __SANITIZE_ADDRESS__
#define STRIDE 1
#else
#define STRIDE 6
#endif

struct way {
	const char *name;
	uint32_t observing;
	uint32_t by; /* of a trace */
	uint32_t contract;
	bool only_trace; /* its life is that of its trace: it takes the kernel long to end */
};

static const struct way WAYS[] = {
	{"none", UFFDB_OBSERVE_NONE, 0, UFFDB_CONTRACT_TOLD, false},
	{"perf", UFFDB_OBSERVE_TRACE, UFFDB_TRACE_BY_PERF, UFFDB_CONTRACT_TOLD, false},
	{"bpf", UFFDB_OBSERVE_TRACE, UFFDB_TRACE_BY_BPF, UFFDB_CONTRACT_TOLD, true},
	{"events", UFFDB_OBSERVE_EVENTS, 0, UFFDB_CONTRACT_CAP, false},
	{"scan", UFFDB_OBSERVE_SCAN, 0, UFFDB_CONTRACT_CAP, false},
};

/* What is made to fail, for the words of a failure. */
static struct {
	const struct way *way;
	enum inject_kind kind;
	size_t nth;
	int error;
} now;

static void explain(const char *what, int64_t result)
{
	fprintf(stderr, "%s: %s number %zu fails with %s: %s gave %lld\n", now.way->name,
		inject_name(now.kind), now.nth, strerrorname_np(now.error), what,
		(long long)result);
	exit(1);
}

#define EXPECT(condition)                                  \
	do {                                               \
		if (!(condition))                          \
			explain("not so: " #condition, 0); \
	} while (0)

/* A call that may fail once, and then by name. Evaluates to its result. */
#define TRY(call)                                                         \
	({                                                                \
		int64_t result_ = (call);                                 \
		for (int try_ = 0; result_ < 0 && try_ < TRIES; try_++) { \
			if (!strerrorname_np((int)-result_))              \
				explain(#call, result_);                  \
			result_ = (call);                                 \
		}                                                         \
		if (result_ < 0)                                          \
			explain(#call ", again and again,", result_);     \
		result_;                                                  \
	})

/* ---- who touches: one thread, there from the beginning ---- */

static struct {
	volatile uint8_t *at;
	int write; /* the value, or -1 to read */
	uint8_t read;
	sem_t begin, end;
} touching;

static void *touch_on_command(void *argument)
{
	(void)argument;
	for (;;) {
		while (sem_wait(&touching.begin))
			;
		if (touching.write >= 0)
			*touching.at = (uint8_t)touching.write;
		else
			touching.read = *touching.at;
		sem_post(&touching.end);
	}
	return NULL;
}

static uint8_t touch(struct setup *setup, uint64_t page, int write)
{
	struct timespec until;

	touching.at = setup->memory + page * PAGE;
	touching.write = write;
	sem_post(&touching.begin);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE_S;
	while (sem_timedwait(&touching.end, &until)) /* which TSan knows */
		if (errno == ETIMEDOUT)
			explain("a touch that sleeps for ever at page", (int64_t)page);
	return write >= 0 ? (uint8_t)write : touching.read;
}

/* ---- one life ---- */

static int tracepoint_id(int tracefs, const char *name)
{
	char path[128], text[16] = "";
	int fd;

	snprintf(path, sizeof(path), "events/syscalls/%s/id", name);
	fd = openat(tracefs, path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	return atoi(text);
}

static struct uffdb_trace_config trace_config;

/* False where this host cannot do it. */
static bool prepare(void)
{
	int tracefs = uffdb_tracefs_open();

	if (tracefs < 0)
		return false;
	trace_config = (struct uffdb_trace_config){
		.pid = getpid(),
		.enter_madvise = tracepoint_id(tracefs, "sys_enter_madvise"),
		.enter_fallocate = tracepoint_id(tracefs, "sys_enter_fallocate"),
		.ring_bytes = 1 << 16,
	};
	close(tracefs);
	return true;
}

static void make_fds(struct setup *setup, const struct way *way)
{
	uint64_t features = WANTED, known;

	if (way->observing == UFFDB_OBSERVE_EVENTS)
		features |= REMOVE_EVENTS;
	setup->uffd = uffdb_uffd_open(-1);
	CHECK(setup->uffd >= 0);
	CHECK(!uffdb_uffd_api(setup->uffd, features, &known));
	setup->pidfd = uffdb_pidfd_open(getpid());
	setup->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	setup->mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	CHECK(setup->pidfd >= 0 && setup->pagemap >= 0 && setup->mem >= 0);
}

static int create_engine(struct setup *setup, const struct way *way, struct uffdb_trace *trace)
{
	const struct uffdb_engine_config config = {
		.uffd = setup->uffd,
		.pidfd = setup->pidfd,
		.pagemap_fd = setup->pagemap,
		.mem_fd = setup->mem,
		.follow = true,
		.pid = getpid(),
		.write_protect = true,
		.follow_cpu = true,
		.ring_records = 1 << 10,
		.around_bytes = HUGE,
		.observing = way->observing,
		.trace = trace,
		.terms = {.kind = way->contract, .floor_bytes = 1ull << 40},
		.nr_rungs = 3,
		.rungs = {{.kind = UFFDB_RUNG_ZERO_READ},
			  {.kind = UFFDB_RUNG_FREEZE, .hold_ns = HOLD_NS},
			  {.kind = UFFDB_RUNG_OBSERVE}},
	};

	return uffdb_engine_create(&config, setup->ledger, &setup->engine);
}

static void give_up(struct setup *setup, uint64_t page)
{
	CHECK(!madvise(setup->memory + page * PAGE, PAGE, MADV_DONTNEED));
}

/* The guest and its QEMU do all that they may do, and so does the manager. */
static void live_enforced(struct setup *setup, const struct way *way)
{
	uint64_t start = address(setup), there = HUGE / PAGE + 7;
	int32_t nobody = 1;
	struct uffdb_parked held[4];
	struct uffdb_contract contract;
	struct uffdb_event event;

	TRY(uffdb_engine_inflate(setup->engine, start, 8 * PAGE));
	CHECK(!madvise(setup->memory, 8 * PAGE, MADV_DONTNEED));
	EXPECT(touch(setup, 0, -1) == 0);
	touch(setup, 0, 5);
	touch(setup, 1, 6);
	EXPECT(touch(setup, 0, -1) == 5 && touch(setup, 1, -1) == 6);
	give_up(setup, there);
	TRY(uffdb_engine_follow(setup->engine));
	if (way->observing == UFFDB_OBSERVE_SCAN)
		TRY(uffdb_engine_scan(setup->engine));
	TRY(uffdb_engine_follow(setup->engine));
	EXPECT(touch(setup, there + 1, -1) == 1);
	touch(setup, there, 7);
	EXPECT(touch(setup, there, -1) == 7);
	TRY(uffdb_engine_set_vcpus(setup->engine, &nobody, 1));
	EXPECT(touch(setup, 2, -1) == 0);
	touch(setup, 3, 8);
	TRY(uffdb_engine_set_vcpus(setup->engine, NULL, 0));
	uffdb_engine_contract(setup->engine, &contract);
	uffdb_engine_parked(setup->engine, held, 4);
	uffdb_engine_release(setup->engine, 0);
	TRY(uffdb_engine_deflate(setup->engine, start, 8 * PAGE));
	EXPECT(touch(setup, 4, -1) == 0);
	touch(setup, 5, 9);
	EXPECT(touch(setup, 5, -1) == 9 && touch(setup, 3, -1) == 8);
	TRY(uffdb_engine_inflate(setup->engine, start + HUGE, HUGE));
	CHECK(!madvise(setup->memory + HUGE, HUGE, MADV_DONTNEED));
	EXPECT(touch(setup, HUGE / PAGE, -1) == 0);
	TRY(uffdb_engine_tidy(setup->engine));
	TRY(uffdb_engine_reset(setup->engine, 0));
	EXPECT(touch(setup, HUGE / PAGE + 1, -1) == 0);
	touch(setup, HUGE / PAGE + 2, 4);
	uffdb_engine_drain(setup->engine, &event, 1);
}

static void check_owned(struct setup *setup)
{
	for (uint64_t at = OWNED; at < SIZE; at++)
		EXPECT(setup->memory[at] == 1);
}

static void live_by_engine(struct setup *setup, const struct way *way, struct uffdb_trace *trace)
{
	const struct uffdb_block block = {.hva = address(setup), .size = SIZE};
	struct uffdb_stats stats;

	TRY(uffdb_ledger_create(&block, 1, &setup->ledger));
	TRY(create_engine(setup, way, trace));
	TRY(uffdb_engine_start(setup->engine));
	live_enforced(setup, way);
	uffdb_engine_stop(setup->engine);
	TRY(uffdb_engine_start(setup->engine));
	touch(setup, 9, 3);
	uffdb_engine_stats(setup->engine, &stats);
	uffdb_engine_destroy(setup->engine);
	uffdb_ledger_destroy(setup->ledger);
}

static void live(struct setup *setup, const struct way *way)
{
	struct uffdb_trace *trace = NULL;
	bool traced = way->observing == UFFDB_OBSERVE_TRACE;

	make_fds(setup, way);
	memset(setup->memory, 1, SIZE);
	inject_begin(now.kind, now.nth, now.error);
	if (traced) {
		int tracefs = (int)TRY(uffdb_tracefs_open());

		close(tracefs);
		trace_config.by = way->by;
		TRY(uffdb_trace_create(&trace_config, &trace));
		TRY(uffdb_trace_quiet(trace));
		uffdb_trace_hush(trace);
		TRY(uffdb_trace_quiet(trace));
	}
	if (!way->only_trace)
		live_by_engine(setup, way, trace);
	uffdb_trace_destroy(trace);
	inject_end();
	close(setup->uffd);
	close(setup->pidfd);
	close(setup->pagemap);
	close(setup->mem);
	check_owned(setup);
}

/* ---- all lives ---- */

static size_t count_entries(const char *path)
{
	DIR *directory = opendir(path);
	size_t nr = 0;

	CHECK(directory);
	while (readdir(directory))
		nr++;
	closedir(directory);
	return nr;
}

static void check_nothing_is_left(size_t fds, size_t threads)
{
	EXPECT(count_entries("/proc/self/fd") == fds);
	EXPECT(count_entries("/proc/self/task") == threads);
}

static size_t walk(struct setup *setup, const struct way *way, bool all)
{
	size_t fds, threads, lives = 0, counts[INJECT_NR_KINDS];

	now.way = way;
	now.kind = 0;
	now.nth = 0;
	live(setup, way); /* also to have all that is made once made */
	live(setup, way);
	for (size_t kind = 0; kind < INJECT_NR_KINDS; kind++)
		counts[kind] = inject_count((enum inject_kind)kind);
	fds = count_entries("/proc/self/fd");
	threads = count_entries("/proc/self/task");
	for (size_t kind = 0; kind < INJECT_NR_KINDS; kind++) {
		CHECK(counts[kind] < MOST_CALLS);
		for (size_t i = 0; i < counts[kind] * NR_ERRORS; i++) {
			now.kind = (enum inject_kind)kind;
			now.nth = 1 + i / NR_ERRORS;
			now.error = ERRORS[i % NR_ERRORS];
			if (!all && ((now.nth + kind) % NR_ERRORS != i % NR_ERRORS ||
				     (now.nth + kind) % STRIDE))
				continue;
			live(setup, way);
			check_nothing_is_left(fds, threads);
			lives++;
		}
	}
	printf("%s:", way->name);
	for (size_t kind = 0; kind < INJECT_NR_KINDS; kind++)
		if (counts[kind])
			printf(" %s %zu", inject_name((enum inject_kind)kind), counts[kind]);
	printf("; %zu lives\n", lives);
	fflush(stdout);
	return lives;
}

static void a_refused_answer_tells_its_errno(void)
{
	struct uffdb_stats stats;
	struct setup setup;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	inflate(&setup, 0, 2 * PAGE);
	inject_begin(INJECT_ioctl, 1, EPERM);
	setup.memory[0] = 1; /* let try again, and answered then */
	CHECK(inject_end());
	setup.memory[PAGE] = 1;
	stats = stats_of(&setup);
	CHECK(stats.failed == 1 && stats.failed_errno[EPERM] == 1);
	for (size_t error = 0; error < UFFDB_ERRNOS; error++)
		CHECK(error == EPERM || !stats.failed_errno[error]);
	tear_down(&setup);
}

int main(int argc, char **argv)
{
	bool all = argc > 1 && !strcmp(argv[1], "all"), traces = prepare();
	struct setup setup = {.memory = map_aligned(SIZE)};
	pthread_t thread;
	int probe = uffdb_uffd_open(-1);

	if (probe < 0) {
		fprintf(stderr, "no userfaultfd here: %s\n", strerror(-probe));
		return SKIPPED;
	}
	close(probe);
	a_refused_answer_tells_its_errno();
	sem_init(&touching.begin, 0, 0);
	sem_init(&touching.end, 0, 0);
	CHECK(!pthread_create(&thread, NULL, touch_on_command, NULL));
	for (size_t i = 0; i < sizeof(WAYS) / sizeof(*WAYS); i++)
		if (traces || WAYS[i].observing != UFFDB_OBSERVE_TRACE)
			walk(&setup, &WAYS[i], all);
	return 0;
}
