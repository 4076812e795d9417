// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * When each 2 MiB of a RAM block was touched last in a way that was not ordinary.
 * Counted from the start of the block: that is how the guest's own addresses
 * run, wherever the block lies in the target.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "ledger.h"
#include "pages.h"
#include "touched.h"
#include "uffdballoon.h"

struct uffdb_touched {
	const struct uffdb_ledger *ledger;
	size_t *first; /* by RAM block: index of its first entry */
	_Atomic uint64_t *at_ns;
};

static size_t count_of(const struct uffdb_block *block)
{
	return (block->size + UFFDB_HUGE - 1) / UFFDB_HUGE;
}

int uffdb_touched_create(const struct uffdb_ledger *ledger, struct uffdb_touched **out)
{
	struct uffdb_touched *touched = calloc(1, sizeof(*touched));
	const struct uffdb_block *blocks;
	size_t nr, total = 0;

	if (!touched)
		return -ENOMEM;
	blocks = uffdb_ledger_blocks(ledger, &nr);
	touched->ledger = ledger;
	touched->first = calloc(nr + 1, sizeof(*touched->first));
	for (size_t i = 0; touched->first && i < nr; i++) {
		touched->first[i] = total;
		total += count_of(&blocks[i]);
	}
	/* Of a large guest it is committed where something was touched only. */
	touched->at_ns = calloc(total + 1, sizeof(*touched->at_ns));
	if (!touched->first || !touched->at_ns) {
		uffdb_touched_destroy(touched);
		return -ENOMEM;
	}
	*out = touched;
	return 0;
}

void uffdb_touched_destroy(struct uffdb_touched *touched)
{
	if (!touched)
		return;
	free((void *)touched->at_ns);
	free(touched->first);
	free(touched);
}

/* The entry of an address of @block. */
static size_t index_of(const struct uffdb_touched *touched, const struct uffdb_block *block,
		       uint64_t hva)
{
	const struct uffdb_block *blocks;
	size_t nr;

	blocks = uffdb_ledger_blocks(touched->ledger, &nr);
	return touched->first[block - blocks] + (hva - block->hva) / UFFDB_HUGE;
}

void uffdb_touched_note(struct uffdb_touched *touched, uint64_t hva, uint64_t time_ns)
{
	const struct uffdb_block *block = uffdb_ledger_block(touched->ledger, hva);

	if (block)
		atomic_store_explicit(&touched->at_ns[index_of(touched, block, hva)], time_ns,
				      memory_order_relaxed);
}

uint64_t uffdb_touched_last(const struct uffdb_touched *touched, uint64_t hva, uint64_t len)
{
	const struct uffdb_block *block = uffdb_ledger_block(touched->ledger, hva);
	uint64_t last_ns = 0;
	size_t end;

	if (!block || !len)
		return 0;
	end = index_of(touched, block, hva + len - 1) + 1;
	for (size_t i = index_of(touched, block, hva); i < end; i++) {
		uint64_t at_ns = atomic_load_explicit(&touched->at_ns[i], memory_order_relaxed);

		if (at_ns > last_ns)
			last_ns = at_ns;
	}
	return last_ns;
}
