// SPDX-License-Identifier: GPL-2.0-or-later
/* The ledger at the size of large guests. */
#include <errno.h>

#include "../src/clock.h"
#include "../src/ledger.h"
#include "../src/pages.h"
#include "bench.h"
#include "random.h"
#include "uffdballoon.h"

int64_t uffdb_bench_scatter(struct uffdb_ledger *ledger, uint64_t fragments, uint64_t seed)
{
	size_t nr;
	const struct uffdb_block *block = uffdb_ledger_blocks(ledger, &nr);
	uint64_t pages = nr ? block->size / UFFDB_PAGE : 0;

	if (!pages || fragments > pages)
		return -EINVAL;
	for (uint64_t i = 0; i < fragments; i++) {
		uint64_t page = seed ? uffdb_random_below(&seed, pages)
				     : (uint64_t)((__uint128_t)i * pages / fragments);
		int64_t set = uffdb_ledger_set(ledger, block->hva + page * UFFDB_PAGE, UFFDB_PAGE);

		if (set < 0)
			return set;
	}
	return (int64_t)uffdb_ledger_pages(ledger);
}

uint64_t uffdb_bench_lookups(const struct uffdb_ledger *ledger, uint64_t count, uint64_t span,
			     bool dependent)
{
	size_t nr;
	const struct uffdb_block *block = uffdb_ledger_blocks(ledger, &nr);
	uint64_t pages = (span && span < block->size ? span : block->size) / UFFDB_PAGE;
	uint64_t state = 1, found = 0, begin = uffdb_now_ns(CLOCK_MONOTONIC);

	for (uint64_t i = 0; i < count; i++) {
		uint64_t page = uffdb_random_below(&state, pages);

		found += (uint64_t)uffdb_ledger_test(ledger, block->hva + page * UFFDB_PAGE);
		if (dependent)
			state += found;
	}
	/* A result that is used, so that nothing is left out. */
	return uffdb_now_ns(CLOCK_MONOTONIC) - begin + (found == UINT64_MAX);
}
