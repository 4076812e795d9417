// SPDX-License-Identifier: GPL-2.0-or-later
/* Another userfaultfd gets the memory in between; we play QEMU. */
#include <pthread.h>
#include <sys/socket.h>

#include "engine_setup.h"
#include "uffdballoon.h"

static const char begins[] =
	"{\"timestamp\": {}, \"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}\r\n";

static void touch(const struct setup *setup, uint64_t page)
{
	((volatile uint8_t *)setup->memory)[page * PAGE] = 1;
}

static int open_another(const struct setup *setup)
{
	int other = uffdb_uffd_open(-1);
	uint64_t known;

	CHECK(other >= 0 && !uffdb_uffd_api(other, WANTED, &known));
	CHECK(!uffdb_uffd_register(other, address(setup), SIZE, UFFDB_MODE_WP));
	return other;
}

static void another_has_the_memory_until_it_lets_go(void)
{
	struct setup setup;
	int other;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	keep_khugepaged_out(setup.memory, SIZE);
	inflate(&setup, 0, SIZE);
	CHECK(!uffdb_engine_yielded(setup.engine));
	CHECK(!uffdb_engine_yield(setup.engine) && uffdb_engine_yielded(setup.engine));
	CHECK(!uffdb_engine_yield(setup.engine));
	other = open_another(&setup);
	touch(&setup, 3);
	CHECK(uffdb_engine_take_up(setup.engine) == -EBUSY && uffdb_engine_yielded(setup.engine));
	touch(&setup, 5);
	close(other);
	CHECK(uffdb_engine_take_up(setup.engine) == 2 && !uffdb_engine_yielded(setup.engine));
	CHECK(uffdb_engine_take_up(setup.engine) == 0);
	CHECK(uffdb_ledger_pages(setup.ledger) == PAGES - 2);
	CHECK(stats_of(&setup).violations == 0);
	touch(&setup, 3);
	CHECK(stats_of(&setup).violations == 0);
	touch(&setup, 4);
	CHECK(stats_of(&setup).violations == 1);
	tear_down(&setup);
}

static void what_was_only_read_stays_in_the_balloon(void)
{
	struct setup setup;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	keep_khugepaged_out(setup.memory, SIZE);
	inflate(&setup, 0, HUGE);
	CHECK(!uffdb_engine_yield(setup.engine));
	CHECK(((volatile uint8_t *)setup.memory)[0] == 0);
	CHECK(uffdb_engine_take_up(setup.engine) == 0);
	CHECK(uffdb_ledger_pages(setup.ledger) == HUGE / PAGE);
	touch(&setup, 0);
	CHECK(stats_of(&setup).violations == 1);
	tear_down(&setup);
}

static void windows_that_come_and_go_meanwhile_are_those_of_the_ledger(void)
{
	struct setup setup;
	int other;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	keep_khugepaged_out(setup.memory, SIZE);
	inflate(&setup, 0, HUGE);
	CHECK(!uffdb_engine_yield(setup.engine));
	other = open_another(&setup);
	CHECK(uffdb_engine_deflate(setup.engine, address(&setup), HUGE) == HUGE / PAGE);
	inflate(&setup, 2 * HUGE, HUGE);
	close(other);
	CHECK(uffdb_engine_take_up(setup.engine) == 0);
	CHECK(stats_of(&setup).windows == 1 && stats_of(&setup).armed_bytes == HUGE);
	touch(&setup, 0);
	CHECK(stats_of(&setup).violations == 0);
	touch(&setup, 2 * HUGE / PAGE);
	CHECK(stats_of(&setup).violations == 1);
	tear_down(&setup);
}

static void *touch_first(void *setup)
{
	touch(setup, 0);
	return NULL;
}

static void who_is_held_goes_on(void)
{
	struct setup setup;
	struct uffdb_parked held;
	pthread_t thread;

	set_up(&setup, UFFDB_RUNG_FREEZE, 0);
	inflate(&setup, 0, HUGE);
	CHECK(!pthread_create(&thread, NULL, touch_first, &setup));
	while (!uffdb_engine_parked(setup.engine, &held, 1))
		;
	CHECK(!uffdb_engine_yield(setup.engine));
	CHECK(!pthread_join(thread, NULL));
	CHECK(uffdb_engine_parked(setup.engine, &held, 1) == 0);
	CHECK(uffdb_engine_take_up(setup.engine) > 0);
	tear_down(&setup);
}

static void it_is_yielded_before_the_client_hears_of_a_migration(void)
{
	int ours[2], theirs[2];
	struct uffdb_relay *relay;
	struct setup setup;
	char heard[sizeof(begins)];
	size_t len = sizeof(begins) - 1;

	set_up(&setup, UFFDB_RUNG_OBSERVE, 0);
	inflate(&setup, 0, HUGE);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ours));
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, theirs));
	CHECK(!uffdb_relay_create(ours[1], theirs[1], -1, &relay));
	for (int yields = 0; yields <= 1; yields++) {
		uffdb_engine_yield_at_migration(setup.engine, relay, yields);
		CHECK(write(ours[0], begins, len) == (ssize_t)len);
		CHECK(recv(theirs[0], heard, len, MSG_WAITALL) == (ssize_t)len);
		CHECK(uffdb_engine_yielded(setup.engine) == yields);
	}
	uffdb_engine_yield_at_migration(setup.engine, relay, false);
	tear_down(&setup);
	uffdb_relay_destroy(relay);
	close(ours[0]);
	close(theirs[0]);
}

int main(void)
{
	another_has_the_memory_until_it_lets_go();
	what_was_only_read_stays_in_the_balloon();
	windows_that_come_and_go_meanwhile_are_those_of_the_ledger();
	who_is_held_goes_on();
	it_is_yielded_before_the_client_hears_of_a_migration();
	return 0;
}
