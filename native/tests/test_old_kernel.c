// SPDX-License-Identifier: GPL-2.0-or-later
/* What holds on kernels before 6.7, which answer PAGEMAP_SCAN with ENOTTY. */
#include <stdatomic.h>

#include "../src/kernel_compat.h"
#include "engine_setup.h"
#include "inject.h"

static _Atomic(volatile uint8_t *) slipping; /* is written to before the next page is protected */

static void write_once(void)
{
	volatile uint8_t *byte = atomic_exchange(&slipping, NULL);

	if (byte)
		*byte = 7;
}

static void set_up_on_an_old_kernel(struct setup *setup)
{
	inject_unknown_request(PAGEMAP_SCAN);
	set_up(setup, UFFDB_RUNG_ZERO_READ, UFFDB_RUNG_OBSERVE);
	inflate(setup, 0, HUGE);
	inject_before_request(UFFDIO_WRITEPROTECT, write_once);
}

static void tear_down_on_it(struct setup *setup)
{
	inject_before_request(0, NULL);
	tear_down(setup);
	inject_unknown_request(0);
}

static void a_write_between_zeros_and_their_protection_is_found(void)
{
	struct setup setup;

	set_up_on_an_old_kernel(&setup);
	slipping = setup.memory + 8;
	(void)*(volatile uint8_t *)setup.memory; /* one read: the write is made by the loop */
	CHECK(!slipping && ((volatile uint8_t *)setup.memory)[8] == 7);
	CHECK(stats_of(&setup).slipped_writes == 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] == 1);
	CHECK(uffdb_ledger_test(setup.ledger, address(&setup)) == 0);
	tear_down_on_it(&setup);
}

static void a_read_that_nobody_wrote_beside_stays_in_the_balloon(void)
{
	struct setup setup;

	set_up_on_an_old_kernel(&setup);
	CHECK(*(volatile uint8_t *)setup.memory == 0);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_ZERO_READ] == 1);
	CHECK(stats_of(&setup).slipped_writes == 0);
	CHECK(uffdb_ledger_test(setup.ledger, address(&setup)) == 1);
	setup.memory[0] = 1; /* and the write that follows is trapped */
	CHECK(stats_of(&setup).violations == 2);
	CHECK(uffdb_ledger_test(setup.ledger, address(&setup)) == 0);
	tear_down_on_it(&setup);
}

int main(void)
{
	a_write_between_zeros_and_their_protection_is_found();
	a_read_that_nobody_wrote_beside_stays_in_the_balloon();
	return 0;
}
