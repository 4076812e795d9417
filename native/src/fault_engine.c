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
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "counter.h"
#include "engine.h"
#include "histogram.h"
#include "kernel_compat.h"
#include "ledger.h"
#include "observe.h"
#include "pagemap.h"
#include "pages.h"
#include "placement.h"
#include "relay.h"
#include "ring.h"
#include "roles.h"
#include "signals.h"
#include "thread_ids.h"
#include "touched.h"
#include "uffdballoon.h"
#include "windows.h"

#define STOP_POLL_NS 1000000
#define TURN_POLL_NS 20000

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

/* It may have been deflated in what the trace has lost. */
static void grant_doubtful(struct uffdb_engine *engine, const struct touch *touch)
{
	uffdb_count(&engine->observer->doubts, 1);
	uffdb_grant(engine, touch, UFFDB_GRANTED, UFFDB_ACTION_GRANT);
}

static void begin_anew(struct uffdb_engine *engine, uint64_t at_ns);

/* Has the monitor told of a reset meanwhile? Then all is another picture now. */
static bool was_reset(struct uffdb_engine *engine)
{
	uint64_t at_ns = uffdb_relay_take_reset(engine->relay);

	if (at_ns)
		begin_anew(engine, at_ns);
	return at_ns;
}

/* Whoever comes after us finds it there. */
static void share_contract(struct uffdb_engine *engine)
{
	struct uffdb_contract *shared = uffdb_ledger_contract(engine->ledger);

	if (shared)
		*shared = engine->contract;
}

static uint32_t judge_by_contract(struct uffdb_engine *engine, const struct uffdb_judged *judged)
{
	bool in_grace = engine->contract.in_grace;
	uint32_t verdict = uffdb_contract_judge(&engine->contract, judged);

	if (in_grace)
		share_contract(engine);
	return verdict;
}

static void judge(struct uffdb_engine *engine, struct touch *touch)
{
	const struct uffdb_judged judged = {
		.ballooned_bytes = ballooned_bytes(engine),
		.touched_bytes = touch->ballooned ? touch->size : 0,
		.now_ns = touch->read_ns,
		.role = touch->role,
		.node = touch->block->node,
		.node_ballooned_bytes =
			uffdb_ledger_node_pages(engine->ledger, touch->block->node) * UFFDB_PAGE,
	};

	switch (judge_by_contract(engine, &judged)) {
	case UFFDB_VIOLATION:
		if (engine->relay && was_reset(engine)) {
			touch->ballooned = uffdb_ledger_test(engine->ledger, touch->hva) > 0;
			judge(engine, touch);
			break;
		}
		if (engine->observer && uffdb_is_doubtful(engine, touch->hva)) {
			grant_doubtful(engine, touch);
			break;
		}
		uffdb_count(&engine->violations, 1);
		uffdb_act(engine, touch, 0);
		break;
	case UFFDB_GRANTED:
		uffdb_count(&engine->granted, 1);
		if (touch->block->flags & UFFDB_BLOCK_HUGETLB) {
			uffdb_grant(engine, touch, UFFDB_GRANTED, UFFDB_ACTION_GRANT);
			break;
		}
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

void uffdb_judge_late(struct uffdb_engine *engine, uint64_t hva, uint64_t size)
{
	struct touch touch = {
		.hva = hva,
		.size = size,
		.read_ns = uffdb_now_ns(CLOCK_MONOTONIC),
		.role = UFFDB_ROLE_VCPU, /* a reader would have got the zero page */
		.write = true,
		.protected = true, /* it is there; to grant it is to lift what may be on it */
		.late = true,
		.ballooned = true,
		.block = uffdb_ledger_block(engine->ledger, hva),
	};

	judge(engine, &touch);
}

static void on_fault(struct uffdb_engine *engine, const struct uffd_msg *message, uint64_t read_ns)
{
	uint64_t address = message->arg.pagefault.address;
	uint64_t flags = message->arg.pagefault.flags;
	struct touch touch = {
		.hva = address & ~(UFFDB_PAGE - 1),
		.size = UFFDB_PAGE,
		.read_ns = read_ns,
		.tid = uffdb_thread_here(&engine->thread_ids, message->arg.pagefault.feat.ptid),
		.write = flags & UFFD_PAGEFAULT_FLAG_WRITE,
		.protected = flags & UFFD_PAGEFAULT_FLAG_WP,
		.minor = flags & UFFD_PAGEFAULT_FLAG_MINOR,
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
	if (touch.minor && touch.ballooned) {
		/* Another process filled it, as a device does that acts for the guest. */
		touch.role = UFFDB_ROLE_DEVICE_WRITER;
		uffdb_count(&engine->filled_outside, 1);
	}
	on_touch(engine, &touch);
}

static void on_event(struct uffdb_engine *engine, const struct uffd_msg *message)
{
	switch (message->event) {
	case UFFD_EVENT_FORK:
		close((int)message->arg.fork.ufd); /* the child is not ours to hold */
		break;
	case UFFD_EVENT_REMOVE:
		if (engine->config.observing == UFFDB_OBSERVE_EVENTS)
			uffdb_observe_removal(engine, message->arg.remove.start,
					      message->arg.remove.end);
		break;
	case UFFD_EVENT_UNMAP:
		if (engine->observer)
			uffdb_observe_unmapping(engine, message->arg.remove.start,
						message->arg.remove.end);
		break;
	case UFFD_EVENT_REMAP:
		if (engine->observer)
			uffdb_observe_unmapping(engine, message->arg.remap.from,
						message->arg.remap.from + message->arg.remap.len);
		break;
	default:
		break;
	}
}

static void on_batch(struct uffdb_engine *engine, const struct uffd_msg *messages, size_t nr)
{
	uint64_t read_ns = uffdb_now_ns(CLOCK_MONOTONIC), done_ns = read_ns;

	engine->nr_filled = 0;
	/* What was given up is judged by: faults may be read before the removal that led to them.
	 */
	for (size_t i = 0; i < nr; i++)
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			on_event(engine, &messages[i]);
	for (size_t i = 0; i < nr; i++) {
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		on_fault(engine, &messages[i], read_ns);
		done_ns = uffdb_now_ns(CLOCK_MONOTONIC);
		uffdb_histogram_add(&engine->latency, done_ns - read_ns);
	}
	if (engine->config.follow_cpu && messages[nr - 1].event == UFFD_EVENT_PAGEFAULT &&
	    uffdb_placement_follow(&engine->placement,
				   uffdb_thread_here(&engine->thread_ids,
						     messages[nr - 1].arg.pagefault.feat.ptid),
				   read_ns, done_ns))
		uffdb_count(&engine->moves, 1);
}

static void serve_call(struct uffdb_engine *engine)
{
	uffdb_loop_call *call = atomic_load_explicit(&engine->call, memory_order_acquire);

	if (!call)
		return;
	/* It may have been asked for after the drain that this round of the loop began with. */
	if (engine->observer)
		uffdb_observe(engine);
	call(engine, engine->call_argument);
	atomic_store_explicit(&engine->call, NULL, memory_order_release);
	sem_post(&engine->call_done);
}

/*
 * Go on after a read that failed? Not with an fd that is none. Anything else may
 * pass, and who waits in a fault has nobody but us.
 */
static bool may_read_on(struct uffdb_engine *engine, int error)
{
	const struct timespec pause = {.tv_nsec = STOP_POLL_NS};

	if (error == EINTR || error == EAGAIN)
		return true;
	if (error == EBADF || error == EINVAL)
		return false;
	uffdb_count(&engine->failed, 1);
	nanosleep(&pause, NULL);
	return true;
}

void uffdb_begin_turn(struct uffdb_engine *engine)
{
	/* Before any answer: who goes on because of one sees the turn that it was given in. */
	atomic_fetch_add(&engine->turn, 1);
}

void uffdb_end_turn(struct uffdb_engine *engine)
{
	atomic_fetch_add_explicit(&engine->turn, 1, memory_order_release);
}

/* Wait until what was answered by now is counted: at most for the rest of this turn. */
static void await_end_of_turn(const struct uffdb_engine *engine)
{
	const struct timespec pause = {.tv_nsec = TURN_POLL_NS};
	uint64_t turn = atomic_load_explicit(&engine->turn, memory_order_acquire);

	if (!(turn & 1))
		return;
	while (atomic_load_explicit(&engine->turn, memory_order_acquire) == turn)
		nanosleep(&pause, NULL);
}

static void *fault_loop(void *argument)
{
	struct uffdb_engine *engine = argument;
	struct uffd_msg messages[UFFDB_BATCH];

	pthread_setname_np(pthread_self(), "uffdb-faults");
	engine->start_error = uffdb_parking_start_timer(engine);
	sem_post(&engine->started);
	while (!engine->start_error && !atomic_load(&engine->stop)) {
		/* Woken by a fault, or by UFFDB_WAKE_SIGNAL: a call, a deadline, the end. */
		ssize_t got = read(engine->config.uffd, messages, sizeof(messages));

		if (got < 0 && !may_read_on(engine, errno))
			break;
		uffdb_begin_turn(engine);
		if (engine->observer)
			uffdb_observe(engine);
		if (got > 0)
			on_batch(engine, messages, (size_t)got / sizeof(*messages));
		serve_call(engine);
		if (engine->nr_parked)
			uffdb_expire(engine);
		uffdb_end_turn(engine);
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
	if (until.tv_nsec >= (long)UFFDB_NS_PER_S) {
		until.tv_nsec -= (long)UFFDB_NS_PER_S;
		until.tv_sec++;
	}
	sem_clockwait(&engine->call_done, CLOCK_MONOTONIC, &until);
	return !atomic_load_explicit(&engine->call, memory_order_acquire);
}

static void post_call(struct uffdb_engine *engine, uffdb_loop_call *call, void *argument)
{
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

void uffdb_engine_on_loop(struct uffdb_engine *engine, uffdb_loop_call *call, void *argument)
{
	if (!engine->running) {
		if (engine->observer)
			uffdb_observe(engine);
		call(engine, argument);
		return;
	}
	pthread_mutex_lock(&engine->calling);
	post_call(engine, call, argument);
	pthread_mutex_unlock(&engine->calling);
}

static void do_nothing(int signal)
{
	(void)signal;
}

/* Registered for write protection alone, memory tells of its removal and costs nothing else. */
static int ask_for_events(struct uffdb_engine *engine)
{
	const struct uffdb_block *blocks;
	int error = 0;
	size_t nr;

	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; !error && i < nr; i++)
		error = uffdb_uffd_register(engine->config.uffd, blocks[i].hva, blocks[i].size,
					    UFFDB_MODE_WP);
	return error;
}

static void wake_follower(void *argument)
{
	uffdb_follower_wake(argument);
}

static int set_up(struct uffdb_engine *engine)
{
	const struct uffdb_engine_config *config = &engine->config;
	uint32_t wp = config->write_protect ? UFFDB_MODE_WP : 0;
	uint32_t shared_wp = config->write_protect_shared ? UFFDB_MODE_WP : 0;
	uint32_t shmem = config->minor_shmem ? UFFDB_MODE_MINOR : 0;
	uint32_t hugetlb = config->minor_hugetlbfs ? UFFDB_MODE_MINOR : 0;
	const struct uffdb_windows_config windows = {
		.ledger = engine->ledger,
		.uffd = config->uffd,
		.pagemap_fd = config->pagemap_fd,
		.modes = UFFDB_MODE_MISSING | wp,
		.shared_modes = UFFDB_MODE_MISSING | shared_wp | shmem,
		.hugetlb_modes = UFFDB_MODE_MISSING | shared_wp | hugetlb,
		.budget = config->window_budget,
		.huge_mappings = config->huge_mappings,
		/* A window that goes takes the events of its memory along. */
		.keep = config->observing == UFFDB_OBSERVE_EVENTS,
		.wake = wake_follower,
		.wake_argument = engine,
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
	if (!error)
		error = uffdb_touched_create(engine->ledger, &engine->touched);
	if (!error && config->observing)
		error = uffdb_observer_create(engine);
	if (!error && config->observing == UFFDB_OBSERVE_EVENTS)
		error = ask_for_events(engine);
	if (!error && config->observing == UFFDB_OBSERVE_SCAN)
		error = (int)uffdb_scan(engine);
	if (!error)
		error = uffdb_follower_create(engine);
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
	engine->wake_fd = engine->news_fd = -1;
	sem_init(&engine->call_done, 0, 0);
	sem_init(&engine->started, 0, 0);
	sem_init(&engine->held, 0, 0);
	sem_init(&engine->go_on, 0, 0);
	pthread_mutex_init(&engine->control, NULL);
	pthread_mutex_init(&engine->calling, NULL);
	uffdb_placement_init(&engine->placement, config->pid);
	uffdb_roles_init(&engine->roles, config->pid);
	uffdb_thread_ids_init(&engine->thread_ids, config->pid);
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
	uffdb_touched_destroy(engine->touched);
	uffdb_observer_destroy(engine->observer);
	uffdb_ring_destroy(engine->ring);
	if (engine->zeros != MAP_FAILED)
		munmap(engine->zeros, UFFDB_HUGE);
	uffdb_roles_release(&engine->roles);
	uffdb_thread_ids_release(&engine->thread_ids);
	uffdb_parking_release(engine);
	uffdb_follower_destroy(engine);
	pthread_mutex_destroy(&engine->calling);
	pthread_mutex_destroy(&engine->control);
	sem_destroy(&engine->go_on);
	sem_destroy(&engine->held);
	sem_destroy(&engine->started);
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
	sigdelset(&all, UFFDB_DROP_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&engine->thread, NULL, fault_loop, engine);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return error;
	while (sem_wait(&engine->started)) /* posted by the new thread */
		;
	engine->running = true;
	error = engine->start_error;
	if (!error)
		error = uffdb_follower_start(engine);
	if (error)
		uffdb_engine_stop(engine);
	return error;
}

void uffdb_engine_stop(struct uffdb_engine *engine)
{
	struct timespec pause = {.tv_nsec = STOP_POLL_NS};

	if (!engine->running)
		return;
	uffdb_follower_stop(engine);
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

/* For whoever comes after us, should we be killed before all of it is zapped. */
static void note_inflating(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	struct uffdb_range *inflating = uffdb_ledger_inflating(engine->ledger);

	if (inflating)
		*inflating = (struct uffdb_range){hva, len};
}

int64_t uffdb_engine_inflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	struct change change = {hva, len, 0};
	int error = uffdb_ledger_check(engine->ledger, hva, len);

	/* Before anything is armed for it. */
	if (error)
		return error;
	pthread_mutex_lock(&engine->control);
	note_inflating(engine, hva, len);
	error = uffdb_windows_arm(engine->windows, hva, len);
	if (!error)
		uffdb_engine_on_loop(engine, take, &change);
	else
		note_inflating(engine, 0, 0);
	pthread_mutex_unlock(&engine->control);
	return error ? error : change.pages;
}

void uffdb_engine_inflated(struct uffdb_engine *engine)
{
	note_inflating(engine, 0, 0);
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

static int64_t deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
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

int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	int64_t pages = uffdb_ledger_check(engine->ledger, hva, len);

	if (pages)
		return pages;
	pthread_mutex_lock(&engine->control);
	pages = deflate(engine, hva, len);
	pthread_mutex_unlock(&engine->control);
	return pages;
}

/* What was noted of it for whoever comes after us; unless another one came meanwhile. */
static void forget_reset(struct uffdb_engine *engine, uint64_t at_ns)
{
	struct uffdb_monitor_notes *notes = uffdb_ledger_notes(engine->ledger);
	uint64_t noted_ns = notes ? atomic_load(&notes->reset_ns) : 0;

	if (noted_ns && (!at_ns || noted_ns <= at_ns))
		atomic_compare_exchange_strong(&notes->reset_ns, &noted_ns, 0);
}

static void begin_anew(struct uffdb_engine *engine, uint64_t at_ns)
{
	const struct uffdb_block *blocks;
	size_t nr;

	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		uffdb_ledger_clear(engine->ledger, blocks[i].hva, blocks[i].size);
		uffdb_unpark_range(engine, blocks[i].hva, blocks[i].size, true);
	}
	uffdb_windows_note_all(engine->windows);
	uffdb_contract_reset(&engine->contract, uffdb_now_ns(CLOCK_MONOTONIC));
	share_contract(engine);
	if (engine->observer)
		uffdb_observe_again(engine, at_ns);
	engine->reset_ns = at_ns;
	forget_reset(engine, at_ns);
}

void uffdb_hear_of_kept_reset(struct uffdb_engine *engine)
{
	const struct uffdb_monitor_notes *notes = uffdb_ledger_notes(engine->ledger);
	uint64_t heard_ns = engine->relay ? uffdb_relay_take_reset(engine->relay) : 0;
	uint64_t noted_ns = notes ? atomic_load(&notes->reset_ns) : 0;

	if (heard_ns || noted_ns)
		begin_anew(engine, heard_ns > noted_ns ? heard_ns : noted_ns);
}

/* The monitor's client tells of it, too, and later: once is enough. */
static void hear_of_reset(struct uffdb_engine *engine, void *argument)
{
	uint64_t at_ns = *(const uint64_t *)argument;
	uint64_t heard_ns = engine->relay ? uffdb_relay_take_reset(engine->relay) : 0;

	if (at_ns && at_ns <= engine->reset_ns && !heard_ns)
		return;
	begin_anew(engine, at_ns && heard_ns > at_ns ? heard_ns : at_ns);
}

static void set_relay(struct uffdb_engine *engine, void *argument)
{
	engine->relay = argument;
}

void uffdb_engine_watch_resets(struct uffdb_engine *engine, struct uffdb_relay *relay)
{
	/* A loop that does not run yet drains nothing: a reset that is kept comes first. */
	if (engine->running)
		uffdb_engine_on_loop(engine, set_relay, relay);
	else
		set_relay(engine, relay);
}

int uffdb_engine_reset(struct uffdb_engine *engine, uint64_t at_ns)
{
	const struct uffdb_block *blocks;
	int error = 0;
	size_t nr;

	pthread_mutex_lock(&engine->control);
	uffdb_engine_on_loop(engine, hear_of_reset, &at_ns);
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; !error && i < nr; i++)
		error = uffdb_windows_trim(engine->windows, blocks[i].hva, blocks[i].size);
	pthread_mutex_unlock(&engine->control);
	return error;
}

int uffdb_engine_tidy(struct uffdb_engine *engine)
{
	int blocks;

	pthread_mutex_lock(&engine->control);
	blocks = uffdb_windows_tidy(engine->windows);
	pthread_mutex_unlock(&engine->control);
	return blocks;
}

int uffdb_engine_set_vcpus(struct uffdb_engine *engine, const int32_t *tids, size_t nr)
{
	uffdb_thread_ids_forget(&engine->thread_ids);
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
	await_end_of_turn(engine);
	return uffdb_ring_drain(engine->ring, events, nr);
}

static void add_observed(const struct uffdb_observer *observer, struct uffdb_stats *stats)
{
	stats->observed_inflated = observer->inflated;
	stats->observed_deflated = observer->deflated;
	stats->reported_bytes = observer->reported_bytes;
	stats->refused_discards = observer->refused;
	stats->lost_records = observer->lost;
	stats->resyncs = observer->resyncs;
	stats->doubtful = observer->doubts;
	stats->late = observer->late;
	stats->late_reads = observer->late_reads;
	stats->arm_ns_max = observer->arm_ns_max;
}

void uffdb_engine_stats(const struct uffdb_engine *engine, struct uffdb_stats *stats)
{
	await_end_of_turn(engine);
	*stats = (struct uffdb_stats){
		.ordinary = engine->ordinary,
		.granted = engine->granted,
		.violations = engine->violations,
		.host_reads = engine->host_reads,
		.filled_outside = engine->filled_outside,
		.slipped_writes = engine->slipped_writes,
		.exists = engine->exists,
		.retried = engine->retried,
		.gone = engine->gone,
		.failed = engine->failed,
		.together = engine->together,
		.around_pages = engine->around_pages,
		.zapped_again = engine->zapped_again,
		.events_posted = engine->events_posted,
		.events_dropped = engine->events_dropped,
		.parked = engine->parked_now,
		.moves = engine->moves,
		.moving = engine->moving,
		.follow_errno = (uint64_t)-engine->follow_error,
		.windows = uffdb_windows_count(engine->windows),
		.armed_bytes = uffdb_windows_bytes(engine->windows),
	};
	for (size_t i = 0; i < UFFDB_ACTIONS; i++)
		stats->actions[i] = engine->actions[i];
	if (engine->observer)
		add_observed(engine->observer, stats);
}

uint64_t uffdb_engine_latency(const struct uffdb_engine *engine, uint32_t permille)
{
	await_end_of_turn(engine);
	return uffdb_histogram_quantile(&engine->latency, permille);
}

size_t uffdb_engine_latencies(const struct uffdb_engine *engine, struct uffdb_bucket *out,
			      size_t nr)
{
	await_end_of_turn(engine);
	return uffdb_histogram_list(&engine->latency, out, nr);
}
