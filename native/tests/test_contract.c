// SPDX-License-Identifier: GPL-2.0-or-later
/* tests/unit/test_contract.py holds this against the reference on generated histories. */
#include "check.h"
#include "uffdballoon.h"

static uint32_t judge(struct uffdb_contract *contract, uint64_t ballooned, uint64_t now_ns)
{
	const struct uffdb_judged touch = {
		.ballooned_bytes = ballooned,
		.touched_bytes = 1,
		.now_ns = now_ns,
	};

	return uffdb_contract_judge(contract, &touch);
}

static void grace_ends_at_its_first_limit_for_good(void)
{
	struct uffdb_contract contract = {
		.terms = {.kind = UFFDB_CONTRACT_CAP,
			  .floor_bytes = 100,
			  .grace_ns = 10,
			  .grace_bytes = 2},
	};

	CHECK(judge(&contract, 50, 0) == UFFDB_VIOLATION); /* no reset was yet */
	uffdb_contract_reset(&contract, 1000);
	CHECK(judge(&contract, 50, 1001) == UFFDB_GRANTED);
	CHECK(judge(&contract, 50, 1002) == UFFDB_GRANTED);
	CHECK(judge(&contract, 50, 1003) == UFFDB_VIOLATION); /* two bytes are used up */
	uffdb_contract_reset(&contract, 2000);
	CHECK(judge(&contract, 50, 2010) == UFFDB_VIOLATION); /* time is over */
	CHECK(judge(&contract, 50, 2001) == UFFDB_VIOLATION);
	CHECK(judge(&contract, 101, 2001) == UFFDB_GRANTED);
}

static void told_grants_nothing_and_lets_the_host_read(void)
{
	struct uffdb_contract contract = {.terms.kind = UFFDB_CONTRACT_TOLD};
	struct uffdb_judged touch = {.ballooned_bytes = 9, .touched_bytes = 1};

	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_VIOLATION);
	touch.role = UFFDB_ROLE_DEVICE_WRITER;
	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_VIOLATION);
	touch.role = UFFDB_ROLE_HOST_READER;
	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_ORDINARY);
	touch = (struct uffdb_judged){.ballooned_bytes = 9};
	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_ORDINARY);
}

static void a_node_has_a_floor_of_its_own(void)
{
	struct uffdb_contract contract = {
		.terms = {.kind = UFFDB_CONTRACT_CAP, .node_floors = {[1] = 8}},
	};
	struct uffdb_judged touch = {
		.ballooned_bytes = 99, .touched_bytes = 1, .node = 1, .node_ballooned_bytes = 9};

	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_GRANTED);
	touch.node_ballooned_bytes = 8;
	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_VIOLATION);
	touch.node = 0; /* it has none */
	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_GRANTED);
	touch.node = UFFDB_MAX_NODES;
	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_GRANTED);
	contract.terms.floor_bytes = 99; /* that of all holds as well */
	CHECK(uffdb_contract_judge(&contract, &touch) == UFFDB_VIOLATION);
}

int main(void)
{
	a_node_has_a_floor_of_its_own();
	grace_ends_at_its_first_limit_for_good();
	told_grants_nothing_and_lets_the_host_read();
	return 0;
}
