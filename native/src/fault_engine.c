// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The fault loop: read a fault, look the page up, judge it, answer it.
 *
 * One thread, and on its path no allocation, no lock and no Python. It owns the
 * contract's state, the parked touches and the counters; a controlling thread
 * that wants to change what a touch means has the loop do it between two batches,
 * so that no fault is judged by a picture that has changed meanwhile.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "kernel_compat.h"

#define STOP_POLL_NS 1000000
#define NS_PER_S     1000000000ull

uint64_t uffdb_now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/*
 * Was this fault of a write-protected page answered together with another
 * thread's? Then it is no touch of what the ledger speaks of.
 */
static bool is_stale(const struct uffdb_engine *engine, const struct touch *touch)
{
	return touch->protected && engine->config.pagemap_fd >= 0 &&
	       !uffdb_is_protected(engine->config.pagemap_fd, touch->hva);
}

static uint64_t ballooned_bytes(const struct uffdb_engine *engine)
{
	return uffdb_ledger_pages(engine->ledger) * UFFDB_PAGE;
}

/* Migration, dump or monitor: zeros are right for them, and cost nothing. */
static void serve_host_reader(struct uffdb_engine *engine, struct touch *touch)
{
	if (!uffdb_is_zero_readable(engine, touch)) {
		/* A kernel that cannot protect: the guest's next touch will not be seen. */
		uffdb_count(&engine->host_reads, 1);
		uffdb_give_page(engine, touch);
		return;
	}
	if (uffdb_zero_read(engine, touch))
		return;
	/* A vCPU wrote in between; its write is what is judged. */
	touch->role = UFFDB_ROLE_VCPU;
	uffdb_count(&engine->violations, 1);
	uffdb_act(engine, touch, 0);
}

static void judge(struct uffdb_engine *engine, struct touch *touch)
{
	const struct uffdb_judged judged = {
		.ballooned_bytes = ballooned_bytes(engine),
		.touched_bytes = touch->ballooned ? touch->size : 0,
		.now_ns = touch->read_ns,
		.role = touch->role,
	};

	switch (uffdb_contract_judge(&engine->contract, &judged)) {
	case UFFDB_VIOLATION:
		uffdb_count(&engine->violations, 1);
		uffdb_act(engine, touch, 0);
		break;
	case UFFDB_GRANTED:
		uffdb_count(&engine->granted, 1);
		uffdb_take_out(engine, touch);
		uffdb_post(engine, touch, UFFDB_GRANTED, UFFDB_ACTION_GRANT);
		uffdb_give_around(engine, touch);
		break;
	default:
		if (touch->ballooned) {
			serve_host_reader(engine, touch);
			break;
		}
		uffdb_count(&engine->ordinary, 1);
		uffdb_give_around(engine, touch);
		break;
	}
}

/* Was the page filled since this fault was read? Then its thread is awake already. */
static bool is_filled(const struct uffdb_engine *engine, const struct touch *touch)
{
	for (size_t i = 0; i < engine->nr_filled; i++)
		if (touch->hva >= engine->filled[i].start &&
		    touch->hva < engine->filled[i].start + engine->filled[i].len)
			return true;
	return false;
}

static void on_touch(struct uffdb_engine *engine, struct touch *touch)
{
	if (engine->nr_parked && uffdb_is_parked_already(engine, touch))
		return;
	if (!touch->ballooned && is_filled(engine, touch)) {
		uffdb_count(&engine->ordinary, 1);
		uffdb_count(&engine->together, 1);
		return;
	}
	if (touch->ballooned && is_stale(engine, touch)) {
		uffdb_count(&engine->exists, 1);
		uffdb_let_retry(engine, touch);
		return;
	}
	judge(engine, touch);
}

static void on_fault(struct uffdb_engine *engine, const struct uffd_msg *message, uint64_t read_ns)
{
	uint64_t address = message->arg.pagefault.address;
	uint64_t flags = message->arg.pagefault.flags;
	struct touch touch = {
		.hva = address & ~(UFFDB_PAGE - 1),
		.size = UFFDB_PAGE,
		.read_ns = read_ns,
		.tid = message->arg.pagefault.feat.ptid,
		.write = flags & UFFD_PAGEFAULT_FLAG_WRITE,
		.protected = flags & UFFD_PAGEFAULT_FLAG_WP,
		.block = uffdb_ledger_block(engine->ledger, address),
	};

	if (!touch.block) {
		/* Registered by nobody here; a mapping that moved. Never leave a thread asleep. */
		uffdb_count(&engine->failed, 1);
		uffdb_let_retry(engine, &touch);
		return;
	}
	if (touch.block->flags & UFFDB_BLOCK_HUGETLB) {
		touch.size = UFFDB_HUGE;
		touch.hva = address & ~(UFFDB_HUGE - 1);
	}
	touch.role = uffdb_roles_of(&engine->roles, touch.tid, touch.write);
	touch.ballooned = uffdb_ledger_test(engine->ledger, touch.hva) > 0;
	on_touch(engine, &touch);
}

static void on_batch(struct uffdb_engine *engine, const struct uffd_msg *messages, size_t nr)
{
	uint64_t read_ns = uffdb_now_ns(CLOCK_MONOTONIC), done_ns = read_ns;

	engine->nr_filled = 0;
	for (size_t i = 0; i < nr; i++) {
		if (messages[i].event == UFFD_EVENT_PAGEFAULT) {
			on_fault(engine, &messages[i], read_ns);
			done_ns = uffdb_now_ns(CLOCK_MONOTONIC);
			uffdb_histogram_add(&engine->latency, done_ns - read_ns);
		} else if (messages[i].event == UFFD_EVENT_FORK) {
			close((int)messages[i].arg.fork.ufd); /* the child is not ours to hold */
		}
	}
	if (engine->config.follow_cpu && messages[nr - 1].event == UFFD_EVENT_PAGEFAULT &&
	    uffdb_placement_follow(&engine->placement, messages[nr - 1].arg.pagefault.feat.ptid,
				   read_ns, done_ns))
		uffdb_count(&engine->moves, 1);
}

static void serve_call(struct uffdb_engine *engine)
{
	uffdb_loop_call *call = atomic_load_explicit(&engine->call, memory_order_acquire);

	if (!call)
		return;
	call(engine, engine->call_argument);
	atomic_store_explicit(&engine->call, NULL, memory_order_release);
	sem_post(&engine->call_done);
}

static void *fault_loop(void *argument)
{
	struct uffdb_engine *engine = argument;
	struct uffd_msg messages[UFFDB_BATCH];

	pthread_setname_np(pthread_self(), "uffdb-faults");
	uffdb_parking_start_timer(engine);
	while (!atomic_load(&engine->stop)) {
		/* Woken by a fault, or by UFFDB_WAKE_SIGNAL: a call, a deadline, the end. */
		ssize_t got = read(engine->config.uffd, messages, sizeof(messages));

		if (got < 0 && errno != EINTR && errno != EAGAIN)
			break;
		if (got > 0)
			on_batch(engine, messages, (size_t)got / sizeof(*messages));
		serve_call(engine);
		if (engine->nr_parked)
			uffdb_expire(engine);
	}
	uffdb_parking_stop_timer(engine);
	uffdb_placement_release(&engine->placement);
	atomic_store(&engine->stopped, true);
	return NULL;
}

/* Wait at most a millisecond for the loop to have made the call. */
static bool call_is_done(struct uffdb_engine *engine)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += STOP_POLL_NS;
	if (until.tv_nsec >= (long)NS_PER_S) {
		until.tv_nsec -= (long)NS_PER_S;
		until.tv_sec++;
	}
	sem_clockwait(&engine->call_done, CLOCK_MONOTONIC, &until);
	return !atomic_load_explicit(&engine->call, memory_order_acquire);
}

void uffdb_engine_on_loop(struct uffdb_engine *engine, uffdb_loop_call *call, void *argument)
{
	if (!engine->running) {
		call(engine, argument);
		return;
	}
	engine->call_argument = argument;
	atomic_store_explicit(&engine->call, call, memory_order_release);
	/* The signal may come just before the read() that it shall end: repeat it. */
	while (!atomic_load(&engine->stopped)) {
		pthread_kill(engine->thread, UFFDB_WAKE_SIGNAL);
		if (call_is_done(engine))
			return;
	}
	/* The loop ended by itself: the target is gone. It may have made the call at its end. */
	if (atomic_exchange(&engine->call, NULL))
		call(engine, argument);
}

static void do_nothing(int signal)
{
	(void)signal;
}

static int set_up(struct uffdb_engine *engine)
{
	const struct uffdb_engine_config *config = &engine->config;
	uint32_t wp = config->write_protect ? UFFDB_MODE_WP : 0;
	uint32_t shared_wp = config->write_protect_shared ? UFFDB_MODE_WP : 0;
	const struct uffdb_windows_config windows = {
		.ledger = engine->ledger,
		.uffd = config->uffd,
		.pagemap_fd = config->pagemap_fd,
		.modes = UFFDB_MODE_MISSING | wp,
		.shared_modes = UFFDB_MODE_MISSING | shared_wp,
		.budget = config->window_budget,
	};
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, error;

	engine->zeros = mmap(NULL, UFFDB_HUGE, PROT_READ, flags, -1, 0);
	error = engine->zeros == MAP_FAILED ? -ENOMEM : 0;
	if (!error)
		error = uffdb_parking_init(engine);
	if (!error)
		error = uffdb_ring_create(config->ring_records, &engine->ring);
	if (!error)
		error = uffdb_windows_create(&windows, &engine->windows);
	return error;
}

int uffdb_engine_create(const struct uffdb_engine_config *config, struct uffdb_ledger *ledger,
			struct uffdb_engine **out)
{
	struct uffdb_engine *engine;
	int error;

	if (config->nr_rungs > UFFDB_MAX_RUNGS)
		return -EINVAL;
	for (uint32_t i = 0; i < config->nr_rungs; i++)
		if (config->rungs[i].kind == UFFDB_RUNG_THROTTLE && !config->rungs[i].bytes_per_s)
			return -EINVAL;
	engine = calloc(1, sizeof(*engine));
	if (!engine)
		return -ENOMEM;
	engine->config = *config;
	engine->contract = config->contract;
	engine->ledger = ledger;
	sem_init(&engine->call_done, 0, 0);
	uffdb_placement_init(&engine->placement, config->pid);
	uffdb_roles_init(&engine->roles, config->pid);
	error = set_up(engine);
	if (error) {
		uffdb_engine_destroy(engine);
		return error;
	}
	*out = engine;
	return 0;
}

void uffdb_engine_destroy(struct uffdb_engine *engine)
{
	if (!engine)
		return;
	uffdb_engine_stop(engine);
	uffdb_windows_destroy(engine->windows);
	uffdb_ring_destroy(engine->ring);
	if (engine->zeros != MAP_FAILED)
		munmap(engine->zeros, UFFDB_HUGE);
	uffdb_roles_release(&engine->roles);
	uffdb_parking_release(engine);
	sem_destroy(&engine->call_done);
	free(engine);
}

int uffdb_engine_start(struct uffdb_engine *engine)
{
	struct sigaction action = {.sa_handler = do_nothing}; /* no SA_RESTART: read() must end */
	sigset_t all, before;
	int error;

	if (engine->running)
		return -EALREADY;
	atomic_store(&engine->stop, false);
	atomic_store(&engine->stopped, false);
	sigemptyset(&action.sa_mask);
	if (sigaction(UFFDB_WAKE_SIGNAL, &action, NULL))
		return -errno;
	/* The thread inherits the mask: the process's signals are for its other threads. */
	sigfillset(&all);
	sigdelset(&all, UFFDB_WAKE_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&engine->thread, NULL, fault_loop, engine);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	engine->running = !error;
	return error;
}

void uffdb_engine_stop(struct uffdb_engine *engine)
{
	struct timespec pause = {.tv_nsec = STOP_POLL_NS};

	if (!engine->running)
		return;
	atomic_store(&engine->stop, true);
	/* The signal may come just before the read() that it shall end: repeat it. */
	while (!atomic_load(&engine->stopped)) {
		pthread_kill(engine->thread, UFFDB_WAKE_SIGNAL);
		nanosleep(&pause, NULL);
	}
	pthread_join(engine->thread, NULL);
	engine->running = false;
}

struct change {
	uint64_t hva, len;
	int64_t pages;
};

static void take(struct uffdb_engine *engine, void *argument)
{
	struct change *change = argument;

	change->pages = uffdb_ledger_set(engine->ledger, change->hva, change->len);
}

int64_t uffdb_engine_inflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	struct change change = {hva, len, 0};
	int error = uffdb_windows_arm(engine->windows, hva, len);

	if (error)
		return error;
	uffdb_engine_on_loop(engine, take, &change);
	return change.pages;
}

static void give_back(struct uffdb_engine *engine, void *argument)
{
	struct change *change = argument;

	change->pages = uffdb_ledger_clear(engine->ledger, change->hva, change->len);
	if (engine->nr_parked)
		uffdb_unpark_range(engine, change->hva, change->len, true);
}

/* Lift the protection of what stays registered; the rest was lifted with its registration. */
static int unprotect(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	int error = -EAGAIN;

	for (int i = 0; i < UFFDB_RETRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_writeprotect(engine->config.uffd, hva, len, false);
	/* Not registered for it, or not at all: then nothing is protected. */
	return error == -ENOENT || error == -EINVAL || error == -ESRCH ? 0 : error;
}

int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	struct change change = {hva, len, 0};
	int error;

	uffdb_engine_on_loop(engine, give_back, &change);
	if (change.pages < 0)
		return change.pages;
	error = uffdb_windows_trim(engine->windows, hva, len);
	/* By blocks: one that is not registered any more would end the whole call. */
	for (uint64_t at = hva; !error && at < hva + len;) {
		uint64_t next = (at / UFFDB_HUGE + 1) * UFFDB_HUGE;

		if (next > hva + len)
			next = hva + len;
		error = unprotect(engine, at, next - at);
		at = next;
	}
	return error ? error : change.pages;
}

static void begin_anew(struct uffdb_engine *engine, void *argument)
{
	const struct uffdb_block *blocks;
	size_t nr;

	(void)argument;
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		uffdb_ledger_clear(engine->ledger, blocks[i].hva, blocks[i].size);
		uffdb_unpark_range(engine, blocks[i].hva, blocks[i].size, true);
	}
	uffdb_contract_reset(&engine->contract, uffdb_now_ns(CLOCK_MONOTONIC));
}

int uffdb_engine_reset(struct uffdb_engine *engine)
{
	const struct uffdb_block *blocks;
	int error = 0;
	size_t nr;

	uffdb_engine_on_loop(engine, begin_anew, NULL);
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; !error && i < nr; i++)
		error = uffdb_windows_trim(engine->windows, blocks[i].hva, blocks[i].size);
	return error;
}

int uffdb_engine_tidy(struct uffdb_engine *engine)
{
	return uffdb_windows_tidy(engine->windows);
}

int uffdb_engine_set_vcpus(struct uffdb_engine *engine, const int32_t *tids, size_t nr)
{
	return uffdb_roles_set_vcpus(&engine->roles, tids, nr);
}

static void read_contract(struct uffdb_engine *engine, void *argument)
{
	*(struct uffdb_contract *)argument = engine->contract;
}

void uffdb_engine_contract(struct uffdb_engine *engine, struct uffdb_contract *out)
{
	uffdb_engine_on_loop(engine, read_contract, out);
}

int uffdb_engine_event_fd(const struct uffdb_engine *engine)
{
	return uffdb_ring_fd(engine->ring);
}

size_t uffdb_engine_drain(struct uffdb_engine *engine, struct uffdb_event *events, size_t nr)
{
	return uffdb_ring_drain(engine->ring, events, nr);
}

void uffdb_engine_stats(const struct uffdb_engine *engine, struct uffdb_stats *stats)
{
	*stats = (struct uffdb_stats){
		.ordinary = engine->ordinary,
		.granted = engine->granted,
		.violations = engine->violations,
		.host_reads = engine->host_reads,
		.slipped_writes = engine->slipped_writes,
		.exists = engine->exists,
		.retried = engine->retried,
		.gone = engine->gone,
		.failed = engine->failed,
		.together = engine->together,
		.around_pages = engine->around_pages,
		.events_posted = engine->events_posted,
		.events_dropped = engine->events_dropped,
		.parked = engine->parked_now,
		.moves = engine->moves,
		.windows = uffdb_windows_count(engine->windows),
		.armed_bytes = uffdb_windows_bytes(engine->windows),
	};
	for (size_t i = 0; i < UFFDB_ACTIONS; i++)
		stats->actions[i] = engine->actions[i];
}

uint64_t uffdb_engine_latency(const struct uffdb_engine *engine, uint32_t permille)
{
	return uffdb_histogram_quantile(&engine->latency, permille);
}

size_t uffdb_engine_latencies(const struct uffdb_engine *engine, struct uffdb_bucket *out,
			      size_t nr)
{
	return uffdb_histogram_list(&engine->latency, out, nr);
}
