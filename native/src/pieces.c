// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>

#include "ledger.h"
#include "pages.h"
#include "pieces.h"
#include "toggles.h"

static bool has_huge_pages(const struct uffdb_ledger *ledger)
{
	const struct uffdb_block *blocks;
	size_t nr;

	blocks = uffdb_ledger_blocks(ledger, &nr);
	for (size_t i = 0; i < nr; i++)
		if (blocks[i].flags & UFFDB_BLOCK_HUGETLB)
			return true;
	return false;
}

int uffdb_pieces_create(const struct uffdb_ledger *ledger, struct uffdb_pieces **out)
{
	struct uffdb_pieces *pieces;
	int error;

	*out = NULL;
	if (!has_huge_pages(ledger))
		return 0;
	pieces = calloc(1, sizeof(*pieces));
	if (!pieces)
		return -ENOMEM;
	error = uffdb_ledger_create_of_pages(ledger, &pieces->given);
	if (!error)
		error = uffdb_ledger_create_of_pages(ledger, &pieces->whole);
	if (!error)
		error = uffdb_ledger_create_of_pages(ledger, &pieces->waiting);
	if (!error)
		error = uffdb_ledger_create_of_pages(ledger, &pieces->guarded);
	if (error) {
		uffdb_pieces_destroy(pieces);
		return error;
	}
	*out = pieces;
	return 0;
}

void uffdb_pieces_destroy(struct uffdb_pieces *pieces)
{
	if (!pieces)
		return;
	uffdb_ledger_destroy(pieces->guarded);
	uffdb_ledger_destroy(pieces->waiting);
	uffdb_ledger_destroy(pieces->whole);
	uffdb_ledger_destroy(pieces->given);
	free(pieces);
}

bool uffdb_pieces_are_all(const struct uffdb_pieces *pieces, uint64_t block)
{
	return uffdb_ledger_count(pieces->given, block, UFFDB_HUGE) == UFFDB_HUGE / UFFDB_PAGE;
}

void uffdb_pieces_wait(struct uffdb_pieces *pieces, uint64_t block)
{
	uffdb_ledger_set(pieces->whole, block, UFFDB_HUGE);
	uffdb_ledger_set(pieces->waiting, block, UFFDB_HUGE);
}

void uffdb_pieces_punched(struct uffdb_pieces *pieces, uint64_t block)
{
	uffdb_ledger_clear(pieces->guarded, block, UFFDB_HUGE);
	uffdb_ledger_clear(pieces->waiting, block, UFFDB_HUGE);
}

void uffdb_pieces_leave(struct uffdb_pieces *pieces, uint64_t hva, uint64_t len)
{
	uffdb_ledger_clear(pieces->guarded, hva, len);
	uffdb_ledger_clear(pieces->waiting, hva, len);
	uffdb_ledger_clear(pieces->whole, hva, len);
}

void uffdb_pieces_forget(struct uffdb_pieces *pieces, uint64_t hva, uint64_t len)
{
	uffdb_pieces_leave(pieces, hva, len);
	uffdb_ledger_clear(pieces->given, hva, len);
}
