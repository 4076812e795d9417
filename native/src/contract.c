// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a touch means. tests/support/contract.py is the reference; the two
 * are held against each other on generated histories.
 */
#include "uffdballoon.h"

void uffdb_contract_reset(struct uffdb_contract *contract, uint64_t now_ns)
{
	contract->in_grace = contract->grace_ns || contract->grace_bytes;
	contract->grace_until_ns = now_ns + contract->grace_ns;
	contract->grace_left_bytes = contract->grace_bytes;
}

/* Let the boot grace pay for @bytes; it ends for good at its first limit. */
static bool take_grace(struct uffdb_contract *contract, uint64_t bytes, uint64_t now_ns)
{
	if (!contract->in_grace)
		return false;
	if ((contract->grace_ns && now_ns >= contract->grace_until_ns) ||
	    (contract->grace_bytes && contract->grace_left_bytes < bytes)) {
		contract->in_grace = false;
		return false;
	}
	if (contract->grace_bytes)
		contract->grace_left_bytes -= bytes;
	return true;
}

/* Would the balloon, and its part of the touched page's node, still be large enough? */
static bool stays_above_its_floors(const struct uffdb_contract *contract,
				   const struct uffdb_judged *touch)
{
	uint64_t node_floor =
		touch->node < UFFDB_MAX_NODES ? contract->node_floors[touch->node] : 0;

	return touch->ballooned_bytes >= contract->floor_bytes + touch->touched_bytes &&
	       (!node_floor || touch->node_ballooned_bytes >= node_floor + touch->touched_bytes);
}

uint32_t uffdb_contract_judge(struct uffdb_contract *contract, const struct uffdb_judged *touch)
{
	/* Migration, dump and monitor read what the guest may not: they get zeros. */
	if (!touch->touched_bytes || touch->role == UFFDB_ROLE_HOST_READER)
		return UFFDB_ORDINARY;
	if (contract->kind == UFFDB_CONTRACT_TOLD)
		return UFFDB_VIOLATION;
	if (stays_above_its_floors(contract, touch))
		return UFFDB_GRANTED;
	if (take_grace(contract, touch->touched_bytes, touch->now_ns))
		return UFFDB_GRANTED;
	return UFFDB_VIOLATION;
}
