/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the judge asks of a contract, beside what it offers. */
#ifndef UFFDB_CONTRACT_H
#define UFFDB_CONTRACT_H

#include <stdbool.h>

#include "uffdballoon.h"

/* Would a touch be granted, and leave the balloon above its floors? A boot grace does not count. */
bool uffdb_contract_allows(const struct uffdb_contract *contract, const struct uffdb_judged *touch);

/* Is what free page reporting gives back in the balloon? */
static inline bool uffdb_contract_counts_reports(const struct uffdb_contract *contract)
{
	return contract->terms.kind == UFFDB_CONTRACT_CAP && contract->terms.count_reported;
}

#endif
