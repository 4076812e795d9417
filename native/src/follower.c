// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A thread that follows the guest's balloon: it arms what was given up within FOLLOW_MS,
 * whatever the controlling thread is busy with, and sleeps while nothing happens.
 *
 * It is woken by the trace's bell, and by the windows when a page was given up that nobody
 * traced or a block lost its last one; it wakes the controlling thread by an eventfd when
 * there is something to tell. The bell is put up only when nothing came for FOLLOW_MS: who
 * rings it is the target, and it costs it more than many records.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "engine.h"
#include "follow.h"
#include "follower.h"
#include "observe.h"
#include "scan.h"
#include "signals.h"
#include "slack.h"
#include "uffdballoon.h"
#include "windows.h"

#define FOLLOW_MS 10		/* between two looks while the balloon moves */
#define QUIET_NS  300000000ull	/* so long without news: what moved is told */
#define SCAN_NS	  1000000000ull /* between two scans */
#define TIDY_NS	  1000000000ull /* between two looks for empty windows */
#define SLACK_NS  100000000ull	/* between two looks at what is slack */
#define MS_PER_S  1000

struct progress {
	uint64_t inflated, deflated, reported, resyncs;
	int error;
};

struct follower {
	struct uffdb_engine *engine;
	bool busy;
	bool bell_is_up;
	uint64_t traced;   /* records, as of the last look */
	uint64_t quiet_ns; /* when what moved has been quiet for long enough; 0: nothing moved */
	uint64_t scan_ns, tidy_ns, slack_ns; /* when the next is due; 0: none is */
	struct progress told, seen;
};

static void ring(int fd)
{
	uint64_t one = 1;

	/* It fails only when it is readable already. */
	(void)!write(fd, &one, sizeof(one));
}

static void take_ring(int fd)
{
	uint64_t count;

	(void)!read(fd, &count, sizeof(count));
}

static struct progress progress_of(const struct uffdb_engine *engine)
{
	const struct uffdb_observer *observer = engine->observer;
	struct progress now = {.error = engine->follow_error};

	if (observer) {
		now.inflated = observer->inflated;
		now.deflated = observer->deflated;
		now.reported = observer->counted;
		now.resyncs = observer->resyncs;
	}
	return now;
}

static bool differ(const struct progress *a, const struct progress *b)
{
	return a->inflated != b->inflated || a->deflated != b->deflated ||
	       a->reported != b->reported || a->resyncs != b->resyncs || a->error != b->error;
}

static int until_ms(uint64_t due_ns, uint64_t now_ns)
{
	return due_ns <= now_ns ? 0 : (int)((due_ns - now_ns) / UFFDB_NS_PER_MS + 1);
}

/* How long to sleep at most; -1: until somebody wakes us. */
static int patience_ms(const struct follower *follower)
{
	const uint64_t due[] = {follower->quiet_ns, follower->scan_ns, follower->tidy_ns,
				follower->slack_ns};
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	int least = follower->busy ? FOLLOW_MS : -1;

	for (size_t i = 0; i < sizeof(due) / sizeof(*due); i++) {
		int wait = due[i] ? until_ms(due[i], now_ns) : -1;

		if (wait >= 0 && (least < 0 || wait < least))
			least = wait;
	}
	return least;
}

static bool is_due(uint64_t *due_ns, uint64_t period_ns, uint64_t now_ns)
{
	if (!*due_ns || *due_ns > now_ns)
		return false;
	*due_ns = now_ns + period_ns;
	return true;
}

static void hush_bell(struct follower *follower)
{
	struct uffdb_trace *trace = follower->engine->config.trace;

	if (trace && follower->bell_is_up)
		uffdb_trace_hush(trace);
	follower->bell_is_up = false;
}

/* False when it did not work, and is to be tried again: nothing would wake us. */
static bool hang_up_bell(struct follower *follower)
{
	struct uffdb_trace *trace = follower->engine->config.trace;
	int error = trace ? uffdb_trace_quiet(trace) : 0;

	follower->bell_is_up = trace && !error;
	return !error || error == -ESRCH; /* nobody is left who could ring */
}

static bool follow_once(struct follower *follower)
{
	struct uffdb_engine *engine = follower->engine;
	int result = uffdb_follow(engine);

	/* One that stays, such as no room for a window, is tried again with the next news. */
	engine->follow_error = result < 0 ? result : 0;
	return result > 0;
}

/* Did the trace tell of anything since this was asked last? */
static bool is_traced(struct follower *follower)
{
	const struct uffdb_observer *observer = follower->engine->observer;
	uint64_t before = follower->traced;

	follower->traced = observer ? observer->traced : 0;
	return follower->traced != before;
}

static void keep_up_with_slack(struct follower *follower, uint64_t now_ns)
{
	struct uffdb_engine *engine = follower->engine;

	if (uffdb_has_slack(engine)) {
		if (!follower->slack_ns)
			follower->slack_ns = now_ns + SLACK_NS;
		uffdb_slack_keep_up(engine, is_due(&follower->slack_ns, SLACK_NS, now_ns));
	}
	if (!uffdb_has_slack(engine))
		follower->slack_ns = 0;
}

static void look_and_tidy(struct follower *follower)
{
	struct uffdb_engine *engine = follower->engine;
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC);

	pthread_mutex_lock(&engine->control);
	hush_bell(follower);
	if (is_due(&follower->scan_ns, SCAN_NS, now_ns))
		uffdb_scan(engine);
	follower->busy = follow_once(follower);
	follower->busy |= is_traced(follower);
	if (!follower->busy) {
		bool hung = hang_up_bell(follower);

		/* What came before the bell was up rang nothing. */
		follower->busy = follow_once(follower) || !hung;
	}
	keep_up_with_slack(follower, now_ns);
	if (uffdb_windows_changed(engine->windows)) {
		if (!follower->tidy_ns)
			follower->tidy_ns = now_ns + TIDY_NS;
		if (is_due(&follower->tidy_ns, TIDY_NS, now_ns))
			uffdb_windows_tidy(engine->windows);
	} else {
		follower->tidy_ns = 0;
	}
	pthread_mutex_unlock(&engine->control);
}

/*
 * Tell the controlling thread: of errors and of what is to be zapped at once, of the rest when
 * it is quiet, and where that is asked for, that something begins to move.
 */
static void tell(struct follower *follower)
{
	struct uffdb_engine *engine = follower->engine;
	struct progress now = progress_of(engine);
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	bool urgent = now.error != follower->told.error || engine->nr_again;
	bool moved = atomic_load(&engine->moving);

	if (differ(&now, &follower->seen)) {
		follower->seen = now;
		follower->quiet_ns = now_ns + QUIET_NS;
	}
	atomic_store(&engine->moving, follower->quiet_ns > now_ns);
	/* A limit of what is given up is watched while it is, not afterwards. */
	if (engine->config.tell_begin && !moved && follower->quiet_ns > now_ns)
		ring(engine->news_fd);
	if (follower->quiet_ns && follower->quiet_ns <= now_ns) {
		follower->quiet_ns = 0;
		urgent = urgent || differ(&now, &follower->told);
	}
	if (urgent) {
		follower->told = now;
		ring(engine->news_fd);
	}
}

static void *follow_loop(void *argument)
{
	struct uffdb_engine *engine = argument;
	struct follower follower = {
		.engine = engine,
		.busy = true,
		.scan_ns = engine->config.observing == UFFDB_OBSERVE_SCAN,
	};

	pthread_setname_np(pthread_self(), "uffdb-follows");
	while (!atomic_load(&engine->stop_following)) {
		struct pollfd fds[] = {
			{.fd = engine->wake_fd, .events = POLLIN},
			{.fd = -1, .events = POLLIN},
		};

		if (engine->config.trace && !follower.busy)
			fds[1].fd = uffdb_trace_fd(engine->config.trace);
		/* Woken by uffdb_follower_wake(), or by the bell of the trace. */
		poll(fds, 2, patience_ms(&follower));
		take_ring(engine->wake_fd);
		if (atomic_load(&engine->stop_following))
			break;
		look_and_tidy(&follower);
		tell(&follower);
	}
	return NULL;
}

void uffdb_follower_wake(struct uffdb_engine *engine)
{
	if (engine->wake_fd >= 0)
		ring(engine->wake_fd);
}

int uffdb_follower_create(struct uffdb_engine *engine)
{
	engine->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	engine->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return engine->wake_fd < 0 || engine->news_fd < 0 ? -errno : 0;
}

void uffdb_follower_destroy(struct uffdb_engine *engine)
{
	if (engine->wake_fd >= 0)
		close(engine->wake_fd);
	if (engine->news_fd >= 0)
		close(engine->news_fd);
}

int uffdb_follower_start(struct uffdb_engine *engine)
{
	sigset_t all, before;
	int error;

	if (!engine->config.follow)
		return 0;
	atomic_store(&engine->stop_following, false);
	sigfillset(&all);
	sigdelset(&all, UFFDB_DROP_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&engine->follower, NULL, follow_loop, engine);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	engine->follows = !error;
	return error;
}

void uffdb_follower_stop(struct uffdb_engine *engine)
{
	if (!engine->follows)
		return;
	atomic_store(&engine->stop_following, true);
	uffdb_follower_wake(engine);
	pthread_join(engine->follower, NULL);
	engine->follows = false;
}

int uffdb_engine_news_fd(const struct uffdb_engine *engine)
{
	return engine->news_fd;
}
