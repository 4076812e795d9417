// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The fault loop: read a fault, look the page up, have it judged.
 *
 * One thread, and on its path no allocation, no lock and no Python. It owns the
 * contract's state, the parked touches and the counters; a controlling thread
 * that wants to change what a touch means has the loop do it between two batches,
 * so that no fault is judged by a picture that has changed meanwhile.
 */
#include <errno.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "alarm.h"
#include "answer.h"
#include "clock.h"
#include "counters.h"
#include "drop.h"
#include "engine.h"
#include "held.h"
#include "histogram.h"
#include "judge.h"
#include "kernel_compat.h"
#include "ledger.h"
#include "lent.h"
#include "loop.h"
#include "mailbox.h"
#include "observe.h"
#include "pages.h"
#include "parking.h"
#include "placement.h"
#include "roles.h"
#include "signals.h"
#include "thread_ids.h"
#include "touch.h"
#include "turn.h"
#include "uffdballoon.h"

#define STOP_POLL_NS 1000000

static void on_fault(struct uffdb_engine *engine, const struct uffd_msg *message, uint64_t read_ns)
{
	uint64_t address = message->arg.pagefault.address;
	uint64_t flags = message->arg.pagefault.flags;
	struct uffdb_touch touch = {
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
		uffdb_count_failed(&engine->counters, -ENOENT);
		uffdb_answer_retry(&engine->answerer, &touch);
		return;
	}
	if (touch.block->flags & UFFDB_BLOCK_HUGETLB) {
		touch.size = UFFDB_HUGE;
		touch.hva = address & ~(UFFDB_HUGE - 1);
	}
	touch.traps_after_zeros = uffdb_answer_can_trap_zeros(&engine->answerer, touch.block);
	touch.role = uffdb_roles_of(&engine->roles, touch.tid, touch.write);
	touch.ballooned = uffdb_ledger_test(engine->ledger, touch.hva) > 0;
	if (touch.minor && touch.ballooned) {
		/* Another process filled it, as a device does that acts for the guest. */
		touch.role = UFFDB_ROLE_DEVICE_WRITER;
		uffdb_count(&engine->counters.filled_outside, 1);
	}
	uffdb_judge(engine, &touch);
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

	uffdb_answer_begin_batch(&engine->answerer);
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
		uffdb_count(&engine->counters.moves, 1);
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
	uffdb_count_failed(&engine->counters, -error);
	nanosleep(&pause, NULL);
	return true;
}

/* Have read() end at the earliest deadline. */
static void set_alarm(struct uffdb_engine *engine, uint64_t lent_ns)
{
	uint64_t when_ns = uffdb_parking_deadline(&engine->parking);

	if (!when_ns || (lent_ns && lent_ns < when_ns))
		when_ns = lent_ns;
	uffdb_alarm_set(&engine->alarm, when_ns);
	engine->lent_alarm_ns = lent_ns;
}

static void keep_alarm(struct uffdb_engine *engine)
{
	uint64_t lent_ns = uffdb_lent_deadline(&engine->lent);

	if (uffdb_parking_take_change(&engine->parking) || lent_ns != engine->lent_alarm_ns)
		set_alarm(engine, lent_ns);
}

static void *fault_loop(void *argument)
{
	struct uffdb_engine *engine = argument;
	struct uffd_msg messages[UFFDB_BATCH];

	pthread_setname_np(pthread_self(), "uffdb-faults");
	engine->start_error = uffdb_alarm_start(&engine->alarm);
	sem_post(&engine->started);
	set_alarm(engine, uffdb_lent_deadline(&engine->lent));
	while (!engine->start_error && !atomic_load(&engine->stop)) {
		/* Woken by a fault, or by UFFDB_WAKE_SIGNAL: a call, a deadline, the end. */
		ssize_t got = read(engine->config.uffd, messages, sizeof(messages));

		if (got < 0 && !may_read_on(engine, errno))
			break;
		uffdb_turn_begin(&engine->turn);
		if (engine->observer)
			uffdb_observe(engine);
		if (got > 0)
			on_batch(engine, messages, (size_t)got / sizeof(*messages));
		uffdb_serve_call(engine);
		if (uffdb_parking_count(&engine->parking))
			uffdb_held_expire(engine);
		uffdb_drop_lent(engine);
		keep_alarm(engine);
		uffdb_turn_end(&engine->turn);
	}
	uffdb_alarm_stop(&engine->alarm);
	uffdb_placement_release(&engine->placement);
	atomic_store(&engine->stopped, true);
	return NULL;
}

static void ignore_signal(int signal)
{
	(void)signal;
}

int uffdb_loop_start(struct uffdb_engine *engine)
{
	struct sigaction action = {.sa_handler =
					   ignore_signal}; /* no SA_RESTART: read() must end */
	sigset_t all, before;
	int error;

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
	return engine->start_error;
}

void uffdb_loop_stop(struct uffdb_engine *engine)
{
	struct timespec pause = {.tv_nsec = STOP_POLL_NS};

	if (!engine->running)
		return;
	atomic_store(&engine->stop, true);
	while (!atomic_load(&engine->stopped)) {
		uffdb_wake_loop(engine);
		nanosleep(&pause, NULL);
	}
	pthread_join(engine->thread, NULL);
	engine->running = false;
}
