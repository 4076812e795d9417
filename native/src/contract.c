// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a touch means. tests/support/contract.py is the reference; the two
 * are held against each other on generated histories.
 */
#include "contract.h"
#include "uffdballoon.h"

void uffdb_contract_reset(struct uffdb_contract *contract, uint64_t now_ns)
{
	const struct uffdb_terms *terms = &contract->terms;

	contract->grace = (struct uffdb_grace){
		.runs = terms->grace_ns || terms->grace_bytes,
		.until_ns = now_ns + terms->grace_ns,
		.left_bytes = terms->grace_bytes,
	};
}

/* Let the boot grace pay for @bytes; it ends for good at its first limit. */
static bool take_grace(struct uffdb_contract *contract, uint64_t bytes, uint64_t now_ns)
{
	const struct uffdb_terms *terms = &contract->terms;
	struct uffdb_grace *grace = &contract->grace;

	if (!grace->runs)
		return false;
	if ((terms->grace_ns && now_ns >= grace->until_ns) ||
	    (terms->grace_bytes && grace->left_bytes < bytes)) {
		grace->runs = false;
		return false;
	}
	if (terms->grace_bytes)
		grace->left_bytes -= bytes;
	return true;
}

/* Would the balloon, and its part of the touched page's node, still be large enough? */
static bool stays_above_its_floors(const struct uffdb_terms *terms,
				   const struct uffdb_judged *touch)
{
	uint64_t node_floor = touch->node < UFFDB_MAX_NODES ? terms->node_floors[touch->node] : 0;

	return touch->ballooned_bytes >= terms->floor_bytes + touch->touched_bytes &&
	       (!node_floor || touch->node_ballooned_bytes >= node_floor + touch->touched_bytes);
}

bool uffdb_contract_allows(const struct uffdb_contract *contract, const struct uffdb_judged *touch)
{
	return contract->terms.kind == UFFDB_CONTRACT_CAP &&
	       stays_above_its_floors(&contract->terms, touch);
}

uint32_t uffdb_contract_judge(struct uffdb_contract *contract, const struct uffdb_judged *touch)
{
	/* Migration, dump and monitor read what the guest may not: they get zeros. */
	if (!touch->touched_bytes || touch->role == UFFDB_ROLE_HOST_READER)
		return UFFDB_ORDINARY;
	if (contract->terms.kind == UFFDB_CONTRACT_TOLD)
		return UFFDB_VIOLATION;
	if (stays_above_its_floors(&contract->terms, touch))
		return UFFDB_GRANTED;
	if (take_grace(contract, touch->touched_bytes, touch->now_ns))
		return UFFDB_GRANTED;
	return UFFDB_VIOLATION;
}
