// SPDX-License-Identifier: GPL-2.0-or-later
/* What QEMU's monitor tells is known before a touch is called a violation; we play QEMU. */
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <time.h>

#include "../src/ledger.h"
#include "engine_setup.h"
#include "uffdballoon.h"

static const char answer[] = "{\"return\": {}}\r\n";
static const char before[] = "{\"timestamp\": {}, \"event\": \"RE";
static const char after[] = "SET\", \"data\": {}}\r\n";

struct monitored {
	struct setup setup;
	struct uffdb_relay *relay;
	int qemu, client;
	int to_client; /* the relay's end */
};

static void monitor_late(struct monitored *monitored, uint32_t rung, uint64_t delay_ns)
{
	int ours[2], theirs[2];

	set_up_with(&monitored->setup, (struct uffdb_engine_config){
					       .nr_rungs = 1,
					       .rungs = {{.kind = rung}},
					       .reset_delay_ns = delay_ns,
				       });
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ours));
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, theirs));
	monitored->qemu = ours[0];
	monitored->client = theirs[0];
	monitored->to_client = theirs[1];
	CHECK(!uffdb_relay_create(ours[1], theirs[1], -1, &monitored->relay));
	uffdb_engine_watch_resets(monitored->setup.engine, monitored->relay);
}

static void monitor(struct monitored *monitored)
{
	monitor_late(monitored, UFFDB_RUNG_OBSERVE, 0);
}

static void end(struct monitored *monitored)
{
	tear_down(&monitored->setup);
	uffdb_relay_destroy(monitored->relay);
	close(monitored->qemu);
	close(monitored->client);
}

static void say(int to, const char *text)
{
	CHECK(write(to, text, strlen(text)) == (ssize_t)strlen(text));
}

static void check_heard(int from, const char *text)
{
	char heard[256];

	CHECK(recv(from, heard, strlen(text), MSG_WAITALL) == (ssize_t)strlen(text));
	CHECK(!memcmp(heard, text, strlen(text)));
}

static void bytes_are_handed_on_both_ways(void)
{
	struct monitored monitored;
	char nothing;

	monitor(&monitored);
	say(monitored.qemu, answer);
	check_heard(monitored.client, answer);
	say(monitored.client, "{\"execute\": \"cont\"}");
	check_heard(monitored.qemu, "{\"execute\": \"cont\"}");
	say(monitored.qemu, before); /* the rest never comes */
	shutdown(monitored.qemu, SHUT_RDWR);
	check_heard(monitored.client, before);
	CHECK(recv(monitored.client, &nothing, 1, 0) == 0);
	end(&monitored);
}

static void a_touch_after_a_reset_is_no_violation(void)
{
	struct monitored monitored;
	struct setup *setup = &monitored.setup;

	monitor(&monitored);
	for (int round = 1; round <= 20; round++) {
		inflate(setup, 0, HUGE);
		say(monitored.qemu, answer);
		say(monitored.qemu, before);
		setup->memory[PAGE] = 1; /* the reset is not told of yet */
		CHECK(stats_of(setup).violations == (uint64_t)round);
		say(monitored.qemu, after);
		setup->memory[2 * PAGE] = 1;
		CHECK(stats_of(setup).violations == (uint64_t)round);
		CHECK(uffdb_ledger_pages(setup->ledger) == 0);
		CHECK(uffdb_engine_tidy(setup->engine) == 1 && stats_of(setup).windows == 0);
		check_heard(monitored.client, answer);
		check_heard(monitored.client, before);
		check_heard(monitored.client, after);
	}
	end(&monitored);
}

/* Nor need the relay's thread have come to it: here it waits for a client that reads nothing. */
static void a_reset_that_nobody_has_handed_on_is_known(void)
{
	const int small = 4096;
	static char answers[1024 * (sizeof(answer) - 1) + 1];
	struct monitored monitored;
	struct setup *setup = &monitored.setup;

	monitor(&monitored);
	CHECK(!setsockopt(monitored.to_client, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)));
	inflate(setup, 0, HUGE);
	for (size_t at = 0; at + 1 < sizeof(answers); at += sizeof(answer) - 1)
		memcpy(answers + at, answer, sizeof(answer) - 1);
	say(monitored.qemu, answers); /* at once: many small ones would fill the socket */
	say(monitored.qemu, before);
	say(monitored.qemu, after);
	setup->memory[PAGE] = 1;
	CHECK(stats_of(setup).violations == 0 && uffdb_ledger_pages(setup->ledger) == 0);
	inflate(setup, HUGE, HUGE);
	for (size_t at = 0; at + 1 < sizeof(answers); at += sizeof(answer) - 1)
		check_heard(monitored.client, answer);
	check_heard(monitored.client, before);
	check_heard(monitored.client, after);
	setup->memory[HUGE] = 1; /* the reset is not told of again when it is handed on */
	CHECK(stats_of(setup).violations == 1 && uffdb_ledger_pages(setup->ledger) == 511);
	end(&monitored);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void a_reset_that_is_told_twice_empties_the_balloon_once(void)
{
	struct monitored monitored;
	struct setup *setup = &monitored.setup;
	uint64_t told_ns;

	monitor(&monitored);
	inflate(setup, 0, HUGE);
	told_ns = now_ns();
	say(monitored.qemu, before);
	say(monitored.qemu, after);
	setup->memory[2 * PAGE] = 1;
	CHECK(uffdb_ledger_pages(setup->ledger) == 0);
	inflate(setup, HUGE, HUGE);
	CHECK(!uffdb_engine_reset(setup->engine, told_ns)); /* by the client, which is slower */
	CHECK(uffdb_ledger_pages(setup->ledger) == 512);
	CHECK(!uffdb_engine_reset(setup->engine, now_ns()));
	CHECK(uffdb_ledger_pages(setup->ledger) == 0);
	end(&monitored);
}

/* Wait until the relay has taken all from the socket that @qemu is the other end of. */
static void wait_until_taken(int ours)
{
	struct pollfd fd = {.fd = ours, .events = POLLIN};

	while (poll(&fd, 1, 0))
		usleep(1000);
}

static bool is_answer(int ours)
{
	char there[sizeof(answer) - 1];

	return recv(ours, there, sizeof(there), MSG_PEEK) == sizeof(there) &&
	       !memcmp(there, answer, sizeof(there));
}

/* A relay that ends, and one that goes on with its connection, as after a kill. */
static void a_reset_is_kept_for_who_comes_next(void)
{
	const struct uffdb_block block = {.hva = HUGE, .size = HUGE};
	int file = memfd_create("ledger", 0), sockets[2], spare;
	struct uffdb_ledger *ledger;
	struct uffdb_relay *relay;
	uint64_t begin = now_ns();
	char nothing;

	CHECK(!uffdb_ledger_create_in(file, &block, 1, &ledger));
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	spare = dup(sockets[1]);
	say(sockets[0], answer);
	say(sockets[0], before);
	CHECK(!uffdb_relay_create(sockets[1], -1, file, &relay));
	uffdb_relay_keep(relay, true);
	/* The half of a line stays where it is, and the whole one before it goes. */
	while (is_answer(spare))
		usleep(1000);
	CHECK(!uffdb_ledger_notes(ledger)->reset_ns);
	uffdb_relay_destroy(relay);
	CHECK(recv(spare, &nothing, 1, MSG_PEEK) == 1 && nothing == before[0]);
	say(sockets[0], after);
	CHECK(!uffdb_relay_create(dup(spare), -1, file, &relay));
	wait_until_taken(spare);
	CHECK(uffdb_ledger_notes(ledger)->reset_ns >= begin);
	uffdb_relay_destroy(relay);
	/* Nobody asked this one to keep the connection. */
	CHECK(recv(sockets[0], &nothing, 1, 0) == 0);
	uffdb_ledger_destroy(ledger);
	close(file);
	close(spare);
	close(sockets[0]);
}

static void the_time_of_a_reset_is_that_of_its_event(void)
{
	const struct uffdb_block block = {.hva = HUGE, .size = HUGE};
	int file = memfd_create("ledger", 0), sockets[2], ours;
	struct uffdb_ledger *ledger;
	struct uffdb_relay *relay;
	struct timespec real;
	char event[256];
	uint64_t begin, noted;

	CHECK(!uffdb_ledger_create_in(file, &block, 1, &ledger));
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	ours = dup(sockets[1]);
	begin = now_ns();
	clock_gettime(CLOCK_REALTIME, &real);
	snprintf(event, sizeof(event),
		 "{\"timestamp\": {\"seconds\": %lld, \"microseconds\": %ld}, \"event\": "
		 "\"RESET\"}\r\n",
		 (long long)real.tv_sec - 1, real.tv_nsec / 1000);
	say(sockets[0], event);
	CHECK(!uffdb_relay_create(sockets[1], -1, file, &relay));
	wait_until_taken(ours);
	noted = uffdb_ledger_notes(ledger)->reset_ns;
	/* A second ago; the event tells microseconds. */
	CHECK(noted + 1000000000 + 1000 >= begin && noted < begin);
	uffdb_relay_destroy(relay);
	uffdb_ledger_destroy(ledger);
	close(file);
	close(ours);
	close(sockets[0]);
}

static void *touch(void *memory)
{
	*(volatile uint8_t *)memory = 1;
	return NULL;
}

static void a_touch_waits_for_a_reset_that_is_told_late_before_it_is_harmed(void)
{
	struct monitored monitored;
	struct setup *setup = &monitored.setup;
	pthread_t toucher;

	monitor_late(&monitored, UFFDB_RUNG_FREEZE, 60 * 1000000000ull);
	inflate(setup, 0, HUGE);
	CHECK(!pthread_create(&toucher, NULL, touch, setup->memory));
	usleep(20000); /* it may have touched by now, and waits; or the reset comes first */
	say(monitored.qemu, before);
	say(monitored.qemu, after);
	CHECK(!pthread_join(toucher, NULL));
	CHECK(stats_of(setup).violations == 0 && uffdb_ledger_pages(setup->ledger) == 0);
	end(&monitored);
}

static void a_touch_that_is_not_harmed_waits_for_no_reset(void)
{
	struct monitored monitored;
	struct setup *setup = &monitored.setup;

	monitor_late(&monitored, UFFDB_RUNG_OBSERVE, 3600 * 1000000000ull);
	inflate(setup, 0, HUGE);
	setup->memory[0] = 1; /* returns */
	CHECK(stats_of(setup).violations == 1);
	end(&monitored);
}

int main(void)
{
	a_touch_waits_for_a_reset_that_is_told_late_before_it_is_harmed();
	a_touch_that_is_not_harmed_waits_for_no_reset();
	a_reset_is_kept_for_who_comes_next();
	the_time_of_a_reset_is_that_of_its_event();
	bytes_are_handed_on_both_ways();
	a_touch_after_a_reset_is_no_violation();
	a_reset_that_nobody_has_handed_on_is_known();
	a_reset_that_is_told_twice_empties_the_balloon_once();
	return 0;
}
