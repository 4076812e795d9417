// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The fault loop: read a fault, look the page up, judge it, answer it.
 *
 * One thread, and on its path no allocation, no lock and no Python. What it
 * shares with the controlling thread is atomic: the ledger's words, the set of
 * vCPU threads, the counters.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "kernel_compat.h"

#define BATCH	     64
#define RETRIES	     64
#define WAKE_SIGNAL  (SIGRTMAX - 1)
#define STOP_POLL_NS 1000000
#define NS_PER_S     1000000000ull

struct tid_set {
	struct tid_set *retired; /* the set that this one replaced */
	size_t nr;
	int32_t tids[];
};

struct uffdb_engine {
	struct uffdb_engine_config config;
	struct uffdb_ledger *ledger;
	struct uffdb_windows *windows;
	struct uffdb_ring *ring;
	struct uffdb_histogram latency;
	struct uffdb_placement placement;
	void *zeros; /* 2 MiB, for UFFDIO_COPY */

	pthread_t thread;
	bool running;
	_Atomic bool stop;
	_Atomic bool stopped;
	_Atomic(struct tid_set *) vcpus;

	uint64_t seq;
	_Atomic uint64_t ordinary, granted, violations, host_reads;
	_Atomic uint64_t action_grant, action_zero_read, action_kill;
	_Atomic uint64_t slipped_writes, exists, retried, gone, failed;
	_Atomic uint64_t events_posted, events_dropped, moves;
};

/* A fault that was read, and what there is to know about its page. */
struct touch {
	uint64_t hva; /* of the page, which is @size large */
	uint64_t size;
	uint64_t read_ns;
	uint32_t tid;
	bool write;
	bool protected; /* the page is there, write-protected */
	bool host;
	bool ballooned;
	const struct uffdb_block *block;
};

static void count(_Atomic uint64_t *counter)
{
	/* The fault loop is the only writer: no need for a locked addition. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static bool is_special(const struct touch *touch)
{
	return touch->block->flags & (UFFDB_BLOCK_SHARED | UFFDB_BLOCK_HUGETLB);
}

static bool is_vcpu(const struct uffdb_engine *engine, uint32_t tid)
{
	const struct tid_set *set = atomic_load_explicit(&engine->vcpus, memory_order_acquire);

	if (!set || !set->nr)
		return true;
	for (size_t i = 0; i < set->nr; i++)
		if ((uint32_t)set->tids[i] == tid)
			return true;
	return false;
}

/*
 * Let the thread try again: it faults anew if it must. Right after every answer
 * that could not be given, since a thread that nobody wakes waits for ever.
 */
static void let_retry(struct uffdb_engine *engine, const struct touch *touch)
{
	uffdb_uffd_wake(engine->config.uffd, touch->hva, touch->size);
}

/* Count how an answer came out, and see that nobody is left asleep. */
static bool answered(struct uffdb_engine *engine, const struct touch *touch, int error)
{
	switch (error) {
	case 0:
		return true;
	case -EEXIST:
		count(&engine->exists);
		break;
	case -EAGAIN:
		count(&engine->retried);
		break;
	case -ENOENT:
	case -ESRCH:
		count(&engine->gone);
		break;
	default:
		count(&engine->failed);
		break;
	}
	let_retry(engine, touch);
	return false;
}

/*
 * Fill an absent page with zeros. On anonymous memory the shared zero page is
 * faster than a copy even when a write follows and has to copy it.
 */
static int fill(struct uffdb_engine *engine, const struct touch *touch, uint32_t flags)
{
	int uffd = engine->config.uffd, error = -EAGAIN;

	for (int i = 0; i < RETRIES && error == -EAGAIN; i++) {
		/* ZEROPAGE knows no hugetlbfs, and no way to protect in the same step. */
		if (touch->block->flags & UFFDB_BLOCK_HUGETLB || flags & UFFDB_WRITEPROTECT)
			error = uffdb_uffd_copy(uffd, touch->hva, engine->zeros, touch->size,
						flags);
		else
			error = uffdb_uffd_zeropage(uffd, touch->hva, touch->size, flags);
	}
	return error;
}

static bool give_page(struct uffdb_engine *engine, const struct touch *touch)
{
	if (touch->protected)
		return answered(engine, touch,
				uffdb_uffd_writeprotect(engine->config.uffd, touch->hva,
							touch->size, false));
	return answered(engine, touch, fill(engine, touch, 0));
}

enum zeroed {
	ZEROED,
	ZEROED_BY_ANOTHER,
	WRITTEN
};

/*
 * Give a reader zeros and trap the write that may follow; the reader is still
 * asleep when this returns ZEROED or WRITTEN.
 *
 * Anonymous memory gets the shared zero page, which costs nothing, protected in
 * a second step (the other order does not work: EEXIST). A write by another
 * vCPU between the two steps finds the page unprotected and copies it; it is
 * found afterwards, because the page then is memory of its own. Shared memory
 * and hugetlbfs have no zero page to share: they get a page of zeros that is
 * protected in the same step, and that the balloon loses until it is zapped.
 */
static enum zeroed arm_zeros(struct uffdb_engine *engine, const struct touch *touch)
{
	const struct uffdb_engine_config *config = &engine->config;
	uint32_t flags = UFFDB_DONTWAKE | (is_special(touch) ? UFFDB_WRITEPROTECT : 0);

	if (!answered(engine, touch, fill(engine, touch, flags)))
		return ZEROED_BY_ANOTHER;
	if (is_special(touch))
		return ZEROED;
	if (!answered(engine, touch,
		      uffdb_uffd_writeprotect(config->uffd, touch->hva, touch->size, true)))
		return ZEROED_BY_ANOTHER;
	if (config->pagemap_fd >= 0 && uffdb_holds_memory(config->pagemap_fd, touch->hva) > 0)
		return WRITTEN;
	return ZEROED;
}

static bool can_arm_zeros(const struct uffdb_engine *engine, const struct touch *touch)
{
	return is_special(touch) ? engine->config.write_protect_shared
				 : engine->config.write_protect;
}

/*
 * Tell of a violation. Before its answer, so that whoever sees the guest go on
 * finds it counted and told.
 */
static void post(struct uffdb_engine *engine, const struct touch *touch, uint8_t action)
{
	struct uffdb_event event = {
		.seq = engine->seq++,
		.time_ns = now_ns(CLOCK_REALTIME),
		.hva = touch->hva,
		.size = touch->size,
		.answer_ns = now_ns(CLOCK_MONOTONIC) - touch->read_ns,
		.tid = touch->tid,
		.write = touch->write,
		.verdict = UFFDB_VIOLATION,
		.action = action,
		.host = touch->host,
	};

	count(uffdb_ring_post(engine->ring, &event) ? &engine->events_posted
						    : &engine->events_dropped);
}

static void grant(struct uffdb_engine *engine, const struct touch *touch)
{
	/* First the ledger: what is answered must not be judged as ballooned again. */
	uffdb_ledger_clear(engine->ledger, touch->hva, touch->size);
	count(&engine->action_grant);
	post(engine, touch, UFFDB_ACTION_GRANT);
	give_page(engine, touch);
}

static void kill_target(struct uffdb_engine *engine, const struct touch *touch)
{
	count(&engine->action_kill);
	post(engine, touch, UFFDB_ACTION_KILL);
	syscall(SYS_pidfd_send_signal, engine->config.pidfd, SIGKILL, NULL, 0);
}

/*
 * Try to answer a read with zeros; false when it turns out to be a write, whose
 * page is there by now, write-protected.
 */
static bool zero_read(struct uffdb_engine *engine, struct touch *touch, _Atomic uint64_t *counter,
		      bool tell)
{
	enum zeroed zeroed = arm_zeros(engine, touch);

	if (zeroed == WRITTEN) {
		count(&engine->slipped_writes);
		touch->write = true;
		touch->protected = true;
		return false;
	}
	count(counter);
	if (tell)
		post(engine, touch, UFFDB_ACTION_ZERO_READ);
	if (zeroed == ZEROED)
		let_retry(engine, touch);
	return true;
}

static bool is_zero_readable(const struct uffdb_engine *engine, const struct touch *touch)
{
	return !touch->write && !touch->protected && can_arm_zeros(engine, touch);
}

/* Walk the ladder; the first rung that can answer does. */
static void act(struct uffdb_engine *engine, struct touch *touch)
{
	for (uint32_t i = 0; i < engine->config.nr_rungs; i++) {
		switch (engine->config.rungs[i]) {
		case UFFDB_RUNG_ZERO_READ:
			if (is_zero_readable(engine, touch) &&
			    zero_read(engine, touch, &engine->action_zero_read, true))
				return;
			break;
		case UFFDB_RUNG_KILL:
			kill_target(engine, touch);
			return;
		default:
			grant(engine, touch);
			return;
		}
	}
	grant(engine, touch); /* a ladder that ends early must not leave a vCPU asleep */
}

/*
 * Was this fault of a write-protected page answered together with another
 * thread's? Its message may be read when the page was given back and even
 * ballooned anew: then it is no touch of what the ledger speaks of.
 */
static bool is_stale(const struct uffdb_engine *engine, const struct touch *touch)
{
	return touch->protected && engine->config.pagemap_fd >= 0 &&
	       !uffdb_is_protected(engine->config.pagemap_fd, touch->hva);
}

static void judge(struct uffdb_engine *engine, struct touch *touch)
{
	if (touch->ballooned && is_stale(engine, touch)) {
		count(&engine->exists);
		let_retry(engine, touch);
		return;
	}
	if (!touch->ballooned) {
		count(&engine->ordinary);
		give_page(engine, touch);
		return;
	}
	/* Migration, dump or monitor: zeros are right for them, and cost nothing. */
	if (touch->host && is_zero_readable(engine, touch) &&
	    zero_read(engine, touch, &engine->host_reads, false))
		return;
	count(&engine->violations);
	act(engine, touch);
}

static void on_fault(struct uffdb_engine *engine, const struct uffd_msg *message, uint64_t read_ns)
{
	uint64_t address = message->arg.pagefault.address;
	uint64_t flags = message->arg.pagefault.flags;
	struct touch touch = {
		.size = UFFDB_PAGE,
		.read_ns = read_ns,
		.tid = message->arg.pagefault.feat.ptid,
		.write = flags & UFFD_PAGEFAULT_FLAG_WRITE,
		.protected = flags & UFFD_PAGEFAULT_FLAG_WP,
		.block = uffdb_ledger_block(engine->ledger, address),
	};

	touch.hva = address & ~(UFFDB_PAGE - 1);
	if (!touch.block) {
		/* Registered by nobody here; a mapping that moved. Never leave a thread asleep. */
		count(&engine->failed);
		let_retry(engine, &touch);
		return;
	}
	if (touch.block->flags & UFFDB_BLOCK_HUGETLB) {
		touch.size = UFFDB_HUGE;
		touch.hva = address & ~(UFFDB_HUGE - 1);
	}
	touch.host = !is_vcpu(engine, touch.tid);
	touch.ballooned = uffdb_ledger_test(engine->ledger, touch.hva) > 0;
	if (engine->config.follow_cpu && uffdb_placement_follow(&engine->placement, touch.tid))
		count(&engine->moves);
	judge(engine, &touch);
	uffdb_histogram_add(&engine->latency, now_ns(CLOCK_MONOTONIC) - read_ns);
}

static void on_message(struct uffdb_engine *engine, const struct uffd_msg *message,
		       uint64_t read_ns)
{
	if (message->event == UFFD_EVENT_PAGEFAULT)
		on_fault(engine, message, read_ns);
	else if (message->event == UFFD_EVENT_FORK)
		close((int)message->arg.fork.ufd); /* the child's memory is not ours to hold */
}

static void *fault_loop(void *argument)
{
	struct uffdb_engine *engine = argument;
	struct uffd_msg messages[BATCH];

	pthread_setname_np(pthread_self(), "uffdb-faults");
	while (!atomic_load(&engine->stop)) {
		/* Woken by a fault, or by WAKE_SIGNAL from uffdb_engine_stop(). */
		ssize_t got = read(engine->config.uffd, messages, sizeof(messages));
		uint64_t read_ns = now_ns(CLOCK_MONOTONIC);

		if (got < 0 && errno != EINTR && errno != EAGAIN)
			break;
		for (ssize_t i = 0; i < got / (ssize_t)sizeof(*messages); i++)
			on_message(engine, &messages[i], read_ns);
	}
	uffdb_placement_release(&engine->placement);
	atomic_store(&engine->stopped, true);
	return NULL;
}

static void do_nothing(int signal)
{
	(void)signal;
}

int uffdb_engine_create(const struct uffdb_engine_config *config, struct uffdb_ledger *ledger,
			struct uffdb_engine **out)
{
	struct uffdb_engine *engine;
	uint32_t modes = UFFDB_MODE_MISSING | (config->write_protect ? UFFDB_MODE_WP : 0);
	uint32_t shared = UFFDB_MODE_MISSING | (config->write_protect_shared ? UFFDB_MODE_WP : 0);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, error;

	if (config->nr_rungs > UFFDB_MAX_RUNGS)
		return -EINVAL;
	engine = calloc(1, sizeof(*engine));
	if (!engine)
		return -ENOMEM;
	engine->config = *config;
	engine->ledger = ledger;
	uffdb_placement_init(&engine->placement, config->pid);
	engine->zeros = mmap(NULL, UFFDB_HUGE, PROT_READ, flags, -1, 0);
	error = engine->zeros == MAP_FAILED ? -ENOMEM : 0;
	if (!error)
		error = uffdb_ring_create(config->ring_records, &engine->ring);
	if (!error)
		error = uffdb_windows_create(ledger, config->uffd, modes, shared, &engine->windows);
	if (error) {
		uffdb_engine_destroy(engine);
		return error;
	}
	*out = engine;
	return 0;
}

void uffdb_engine_destroy(struct uffdb_engine *engine)
{
	struct tid_set *set;

	if (!engine)
		return;
	uffdb_engine_stop(engine);
	uffdb_windows_destroy(engine->windows);
	uffdb_ring_destroy(engine->ring);
	if (engine->zeros != MAP_FAILED)
		munmap(engine->zeros, UFFDB_HUGE);
	for (set = atomic_load(&engine->vcpus); set;) {
		struct tid_set *older = set->retired;

		free(set);
		set = older;
	}
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
	if (sigaction(WAKE_SIGNAL, &action, NULL))
		return -errno;
	/* The thread inherits the mask: the process's signals are for its other threads. */
	sigfillset(&all);
	sigdelset(&all, WAKE_SIGNAL);
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
		pthread_kill(engine->thread, WAKE_SIGNAL);
		nanosleep(&pause, NULL);
	}
	pthread_join(engine->thread, NULL);
	engine->running = false;
}

int uffdb_engine_arm(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	return uffdb_windows_arm(engine->windows, hva, len);
}

/* Lift the protection of what stays registered; the rest was lifted with its registration. */
static int unprotect(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	int error = -EAGAIN;

	for (int i = 0; i < RETRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_writeprotect(engine->config.uffd, hva, len, false);
	/* Not registered for it, or not at all: then nothing is protected. */
	return error == -ENOENT || error == -EINVAL || error == -ESRCH ? 0 : error;
}

int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	int64_t pages = uffdb_ledger_clear(engine->ledger, hva, len);
	int error;

	if (pages < 0)
		return pages;
	error = uffdb_windows_trim(engine->windows, hva, len);
	/* By blocks: one that is not registered any more would end the whole call. */
	for (uint64_t at = hva; !error && at < hva + len;) {
		uint64_t next = (at / UFFDB_HUGE + 1) * UFFDB_HUGE;

		if (next > hva + len)
			next = hva + len;
		error = unprotect(engine, at, next - at);
		at = next;
	}
	return error ? error : pages;
}

int uffdb_engine_set_vcpus(struct uffdb_engine *engine, const int32_t *tids, size_t nr)
{
	struct tid_set *set = malloc(sizeof(*set) + nr * sizeof(*tids));

	if (!set)
		return -ENOMEM;
	set->nr = nr;
	memcpy(set->tids, tids, nr * sizeof(*tids));
	/* The loop may be reading the old set: it is freed with the engine. */
	set->retired = atomic_load(&engine->vcpus);
	atomic_store_explicit(&engine->vcpus, set, memory_order_release);
	return 0;
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
		.action_grant = engine->action_grant,
		.action_zero_read = engine->action_zero_read,
		.action_kill = engine->action_kill,
		.slipped_writes = engine->slipped_writes,
		.exists = engine->exists,
		.retried = engine->retried,
		.gone = engine->gone,
		.failed = engine->failed,
		.events_posted = engine->events_posted,
		.events_dropped = engine->events_dropped,
		.moves = engine->moves,
		.windows = uffdb_windows_count(engine->windows),
		.armed_bytes = uffdb_windows_bytes(engine->windows),
	};
}

uint64_t uffdb_engine_latency(const struct uffdb_engine *engine, uint32_t permille)
{
	return uffdb_histogram_quantile(&engine->latency, permille);
}
