// SPDX-License-Identifier: GPL-2.0-or-later
/* No window stays for what a reset has given back, wherever in an inflate it comes. */
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "engine_setup.h"
#include "inject.h"

static const char reset[] = "{\"timestamp\": {}, \"event\": \"RESET\", \"data\": {}}\r\n";

/* For what runs in between. */
static struct setup setup;
static int qemu; /* the end of its monitor that we play */

static void set_up_scanning(void)
{
	make_engine(&setup, SIZE,
		    (struct uffdb_engine_config){
			    .observing = UFFDB_OBSERVE_SCAN,
			    .nr_rungs = 1,
			    .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
		    });
	CHECK(!uffdb_engine_start(setup.engine));
	memset(setup.memory, 1, SIZE);
	keep_khugepaged_out(setup.memory, SIZE);
	CHECK(uffdb_engine_scan(setup.engine) == 0);
}

/* It is in the ledger by then, and its window is yet to be made. */
static void give_up_unarmed(uint64_t page)
{
	CHECK(!madvise(setup.memory + page * PAGE, PAGE, MADV_DONTNEED));
	CHECK(uffdb_engine_scan(setup.engine) == 1);
}

static void check_all_is_over(void)
{
	CHECK(uffdb_engine_follow(setup.engine) >= 0);
	CHECK(uffdb_ledger_pages(setup.ledger) == 0);
	CHECK(stats_of(&setup).windows == 0 && stats_of(&setup).armed_bytes == 0);
}

static void what_is_reset_before_it_is_armed_gets_no_window(void)
{
	set_up_scanning();
	give_up_unarmed(7);
	CHECK(!uffdb_engine_reset(setup.engine, 0));
	check_all_is_over();
	/* And the next one gets its window again. */
	give_up_unarmed(8);
	CHECK(uffdb_engine_follow(setup.engine) == 1 && stats_of(&setup).windows == 1);
	tear_down(&setup);
}

/* The loop hears of it when it judges a touch, of another page that has a window. */
static void reset_by_the_monitor(void)
{
	inject_before_request(0, NULL);
	CHECK(write(qemu, reset, strlen(reset)) == (ssize_t)strlen(reset));
	setup.memory[0] = 1;
	CHECK(stats_of(&setup).violations == 0 && uffdb_ledger_pages(setup.ledger) == 0);
}

static void what_is_reset_while_it_is_armed_keeps_no_window(void)
{
	struct uffdb_relay *relay;
	int sockets[2];

	set_up_scanning();
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	qemu = sockets[0];
	CHECK(!uffdb_relay_create(sockets[1], -1, -1, &relay));
	uffdb_engine_watch_resets(setup.engine, relay);
	inflate(&setup, 0, PAGE);
	give_up_unarmed(HUGE / PAGE);
	inject_before_request(UFFDIO_REGISTER, reset_by_the_monitor);
	check_all_is_over();
	tear_down(&setup);
	uffdb_relay_destroy(relay);
	close(qemu);
}

int main(void)
{
	what_is_reset_before_it_is_armed_gets_no_window();
	what_is_reset_while_it_is_armed_keeps_no_window();
	return 0;
}
