// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * QEMU's monitor is read here first, and handed on: a reset of the guest empties its balloon by
 * definition, and what the guest touches after it must not be judged by the picture of before.
 * QEMU writes the event while the processors stand still (qemu_system_reset() of
 * softmmu/runstate.c, within pause_all_vcpus()), so that it is in our socket before any such
 * touch. The loop asks before it calls a touch a violation, and looks itself at what nobody has
 * looked at yet: on a busy host our thread may not run for long.
 *
 * We may be killed at any instruction, and another go on with the socket. So what comes is looked
 * at, and a reset noted in memory that is kept, before it leaves the socket; and it leaves by whole
 * lines, so that no event is ever cut in two.
 *
 * The beginning of a migration is told on our thread, too, before the client hears of it: a
 * background snapshot needs the memory's only userfaultfd a few milliseconds later.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "ledger.h"
#include "relay.h"
#include "signals.h"
#include "uffdballoon.h"

/* As QEMU's JSON writer puts it; within a string its quotes would be escaped. */
static const char RESET[] = "\"event\": \"RESET\"";
static const char MIGRATION[] = "\"event\": \"MIGRATION\"";
static const char SETUP[] = "\"status\": \"setup\"";
static const char SECONDS[] = "\"seconds\": ";
static const char MICROSECONDS[] = "\"microseconds\": ";

#define CHUNK	      4096	  /* no event is longer */
#define AHEAD	      65536	  /* that the loop looks at, before it is taken */
#define DIGITS	      24	  /* of a number, with its end */
#define PATIENCE_NS   20000000ull /* that a touch waits at most for the rest of a line */
#define REST_MS	      10	  /* until the rest of a line is looked for */
#define LOOK_MS	      100	  /* whether we shall end, while QEMU reads nothing */
#define CLOCK_STEP_NS 10000000ll  /* that CLOCK_REALTIME was set by somebody */
#define NS_PER_US     1000ull

struct uffdb_relay {
	int monitor, client; /* -1: nobody reads what comes */
	pthread_t thread;
	_Atomic uint64_t reset_ns;
	_Atomic(struct uffdb_monitor_notes *) notes; /* that outlive us, or NULL */
	pthread_mutex_t
		taking; /* held for a look at the socket, and until what was seen is taken */
	size_t looked;	/* bytes that were looked at, and are in the socket still */
	_Atomic bool ends, keeps;
	_Atomic bool migrates; /* a migration begins, and nobody was told yet */
	pthread_mutex_t telling;
	uffdb_migration_fn *on_migration; /* or NULL */
	void *on_migration_argument;
	int end;    /* eventfd */
	bool waits; /* for the rest of a line */
};

/* The number after @name in a line, or -1. */
static int64_t number_after(const char *line, size_t nr, const char *name)
{
	const char *at = memmem(line, nr, name, strlen(name));
	char digits[DIGITS] = {0};
	size_t left;

	if (!at)
		return -1;
	at += strlen(name);
	left = (size_t)(line + nr - at);
	memcpy(digits, at, left < DIGITS - 1 ? left : DIGITS - 1);
	return strtoll(digits, NULL, 10);
}

/* Was CLOCK_REALTIME set since it was looked at last, perhaps by another? */
static bool was_clock_set(struct uffdb_relay *relay, int64_t ahead_ns)
{
	struct uffdb_monitor_notes *notes = atomic_load(&relay->notes);
	int64_t before_ns = notes ? atomic_exchange(&notes->clock_ahead_ns, ahead_ns) : 0;

	return before_ns &&
	       (ahead_ns - before_ns > CLOCK_STEP_NS || before_ns - ahead_ns > CLOCK_STEP_NS);
}

/*
 * CLOCK_MONOTONIC of an event, whose own time is CLOCK_REALTIME; now when that cannot be told. The
 * clocks are read in the order that errs to a later time: the client's reading is earlier.
 */
static uint64_t time_of(struct uffdb_relay *relay, const char *line, size_t nr)
{
	int64_t seconds = number_after(line, nr, SECONDS);
	int64_t microseconds = number_after(line, nr, MICROSECONDS);
	uint64_t real_ns = uffdb_now_ns(CLOCK_REALTIME), now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	uint64_t told_ns, age_ns;

	if (was_clock_set(relay, (int64_t)(real_ns - now_ns)) || seconds < 0 || microseconds < 0)
		return now_ns;
	told_ns = (uint64_t)seconds * UFFDB_NS_PER_S + (uint64_t)microseconds * NS_PER_US;
	age_ns = real_ns - told_ns;
	return told_ns > real_ns || age_ns >= now_ns ? now_ns : now_ns - age_ns;
}

static void note(struct uffdb_relay *relay, uint64_t at_ns)
{
	struct uffdb_monitor_notes *notes = atomic_load(&relay->notes);

	if (notes)
		atomic_store(&notes->reset_ns, at_ns);
	atomic_store(&relay->reset_ns, at_ns);
}

static void look_at_line(struct uffdb_relay *relay, const char *line, size_t nr)
{
	if (memmem(line, nr, RESET, sizeof(RESET) - 1))
		note(relay, time_of(relay, line, nr));
	if (memmem(line, nr, MIGRATION, sizeof(MIGRATION) - 1) &&
	    memmem(line, nr, SETUP, sizeof(SETUP) - 1))
		atomic_store(&relay->migrates, true);
}

/* Whole lines, or a piece of one that is longer than any event. */
static void look_at_lines(struct uffdb_relay *relay, const char *bytes, size_t nr)
{
	while (nr) {
		const char *stop = memchr(bytes, '\n', nr);
		size_t len = stop ? (size_t)(stop + 1 - bytes) : nr;

		look_at_line(relay, bytes, len);
		bytes += len;
		nr -= len;
	}
}

static bool hand_on(struct uffdb_relay *relay, int to, const char *bytes, size_t nr)
{
	while (nr && to >= 0) {
		ssize_t sent = send(to, bytes, nr, MSG_NOSIGNAL | MSG_DONTWAIT);
		struct pollfd fd = {.fd = to, .events = POLLOUT};

		if (sent < 0 && errno == EAGAIN && !atomic_load(&relay->ends))
			poll(&fd, 1, LOOK_MS);
		else if (sent < 0 && errno != EINTR)
			return false;
		if (sent > 0) {
			bytes += sent;
			nr -= (size_t)sent;
		}
	}
	return true;
}

static bool goes_on_after(ssize_t got)
{
	return got < 0 && (errno == EAGAIN || errno == EINTR);
}

static bool has_hung_up(int fd)
{
	struct pollfd asked = {.fd = fd, .events = POLLRDHUP};

	return poll(&asked, 1, 0) > 0;
}

static size_t whole_lines(const struct uffdb_relay *relay, const char *bytes, size_t nr)
{
	const char *last = memrchr(bytes, '\n', nr);

	if (last)
		return (size_t)(last + 1 - bytes);
	return nr >= CHUNK || has_hung_up(relay->monitor) ? nr : 0;
}

/* Of what is in the socket, look at whole lines that nobody has looked at. Return: their end. */
static size_t look_on(struct uffdb_relay *relay, const char *bytes, size_t nr)
{
	size_t whole = whole_lines(relay, bytes, nr);

	if (whole > relay->looked) {
		look_at_lines(relay, bytes + relay->looked, whole - relay->looked);
		relay->looked = whole;
	}
	return whole;
}

/* On our thread alone: the loop may look at lines as well, and is waited for in this. */
static void tell_of_migration(struct uffdb_relay *relay)
{
	if (!atomic_exchange(&relay->migrates, false))
		return;
	pthread_mutex_lock(&relay->telling);
	if (relay->on_migration)
		relay->on_migration(relay->on_migration_argument);
	pthread_mutex_unlock(&relay->telling);
}

void uffdb_relay_on_migration(struct uffdb_relay *relay, uffdb_migration_fn *call, void *argument)
{
	pthread_mutex_lock(&relay->telling);
	relay->on_migration = call;
	relay->on_migration_argument = argument;
	pthread_mutex_unlock(&relay->telling);
}

static bool pass_from_monitor(struct uffdb_relay *relay)
{
	char bytes[CHUNK];
	ssize_t got;
	size_t nr = 0;

	pthread_mutex_lock(&relay->taking);
	got = recv(relay->monitor, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_PEEK);
	if (got > 0) {
		nr = look_on(relay, bytes, (size_t)got);
		if (nr)
			recv(relay->monitor, bytes, nr, MSG_DONTWAIT);
		relay->looked -= nr;
	}
	pthread_mutex_unlock(&relay->taking);
	relay->waits = got > 0 && !nr;
	/* Before the client hears of it. */
	tell_of_migration(relay);
	if (got <= 0)
		return goes_on_after(got);
	return hand_on(relay, relay->client, bytes, nr);
}

static bool pass_from_client(struct uffdb_relay *relay)
{
	char bytes[CHUNK];
	ssize_t got = recv(relay->client, bytes, sizeof(bytes), MSG_DONTWAIT);

	if (got <= 0)
		return goes_on_after(got);
	return hand_on(relay, relay->monitor, bytes, (size_t)got);
}

static void *relay_loop(void *argument)
{
	struct uffdb_relay *relay = argument;
	bool goes_on = true;

	pthread_setname_np(pthread_self(), "uffdb-monitor");
	while (goes_on && !atomic_load(&relay->ends)) {
		struct pollfd fds[] = {
			{.fd = relay->waits ? -1 : relay->monitor, .events = POLLIN},
			{.fd = relay->client, .events = POLLIN},
			{.fd = relay->end, .events = POLLIN},
		};
		/* Woken by QEMU, by the client, or by the end of either; or of us. */
		int nr = poll(fds, 3, relay->waits ? REST_MS : -1);

		if (fds[0].revents || !nr)
			goes_on = pass_from_monitor(relay);
		if (goes_on && fds[1].revents)
			goes_on = pass_from_client(relay);
	}
	/* Each side sees the end of the other. */
	shutdown(relay->client, SHUT_RDWR);
	if (!atomic_load(&relay->keeps))
		shutdown(relay->monitor, SHUT_RDWR);
	return NULL;
}

int uffdb_relay_note_in(struct uffdb_relay *relay, int memory)
{
	int64_t ahead_ns, none = 0;
	struct uffdb_monitor_notes *notes;
	uint64_t at_ns;
	int error;

	if (atomic_load(&relay->notes))
		return 0;
	error = uffdb_ledger_map_notes(memory, &notes);
	if (error)
		return error;
	ahead_ns = (int64_t)(uffdb_now_ns(CLOCK_REALTIME) - uffdb_now_ns(CLOCK_MONOTONIC));
	atomic_compare_exchange_strong(&notes->clock_ahead_ns, &none, ahead_ns);
	atomic_store(&relay->notes, notes);
	at_ns = atomic_load(&relay->reset_ns);
	if (at_ns)
		atomic_store(&notes->reset_ns, at_ns);
	return 0;
}

static void free_relay(struct uffdb_relay *relay)
{
	if (relay->notes)
		uffdb_ledger_unmap_notes(relay->notes);
	if (relay->end >= 0)
		close(relay->end);
	pthread_mutex_destroy(&relay->telling);
	pthread_mutex_destroy(&relay->taking);
	free(relay);
}

static int start(struct uffdb_relay *relay, int memory)
{
	sigset_t all, before;
	int error = 0;

	relay->end = eventfd(0, EFD_CLOEXEC);
	if (relay->end < 0)
		return -errno;
	if (memory >= 0)
		error = uffdb_relay_note_in(relay, memory);
	if (error)
		return error;
	sigfillset(&all);
	sigdelset(&all, UFFDB_DROP_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&relay->thread, NULL, relay_loop, relay);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error;
}

int uffdb_relay_create(int monitor, int client, int memory, struct uffdb_relay **out)
{
	struct uffdb_relay *relay = calloc(1, sizeof(*relay));
	int error;

	if (!relay)
		return -ENOMEM;
	pthread_mutex_init(&relay->taking, NULL);
	pthread_mutex_init(&relay->telling, NULL);
	relay->monitor = monitor;
	relay->client = client;
	error = start(relay, memory);
	if (error) {
		free_relay(relay);
		return error;
	}
	*out = relay;
	return 0;
}

void uffdb_relay_keep(struct uffdb_relay *relay, bool keeps)
{
	atomic_store(&relay->keeps, keeps);
}

void uffdb_relay_destroy(struct uffdb_relay *relay)
{
	if (!relay)
		return;
	atomic_store(&relay->ends, true);
	eventfd_write(relay->end, 1);
	pthread_join(relay->thread, NULL);
	/* Its thread may have ended before somebody changed his mind. */
	if (!relay->keeps)
		shutdown(relay->monitor, SHUT_RDWR);
	if (relay->client >= 0)
		close(relay->client);
	close(relay->monitor);
	free_relay(relay);
}

/* Look at what is in the socket; false when there may be more, or the rest of a line is to come. */
static bool look_ahead(struct uffdb_relay *relay)
{
	char bytes[AHEAD];
	bool is_all;
	ssize_t got;

	pthread_mutex_lock(&relay->taking);
	got = recv(relay->monitor, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_PEEK);
	if (got > 0)
		look_on(relay, bytes, (size_t)got);
	is_all = got <= 0 || (got < AHEAD && (size_t)got <= relay->looked);
	pthread_mutex_unlock(&relay->taking);
	return is_all;
}

uint64_t uffdb_relay_take_reset(struct uffdb_relay *relay)
{
	uint64_t until_ns = 0;

	while (!look_ahead(relay)) {
		if (!until_ns)
			until_ns = uffdb_now_ns(CLOCK_MONOTONIC) + PATIENCE_NS;
		else if (uffdb_now_ns(CLOCK_MONOTONIC) > until_ns)
			break;
		sched_yield();
	}
	return atomic_exchange(&relay->reset_ns, 0);
}
