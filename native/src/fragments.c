// SPDX-License-Identifier: GPL-2.0-or-later
/* How fragmented a balloon is: see uffdballoon/model/fragments.py for what is made of it. */
#include "pages.h"
#include "uffdballoon.h"

static void add_run(struct uffdb_fragments *out, uint64_t first, uint64_t pages)
{
	uint64_t end = first + pages;

	if (!out->pages || first < out->first_page)
		out->first_page = first;
	if (end > out->end_page)
		out->end_page = end;
	out->pages += pages;
	out->runs++;
	out->lengths[63 - __builtin_clzll(pages)]++;
	/* Naturally aligned power-of-two blocks, the fewest. */
	while (first < end) {
		unsigned int order = UFFDB_MAX_ORDER, fits;

		if (first && (unsigned int)__builtin_ctzll(first) < order)
			order = (unsigned int)__builtin_ctzll(first);
		fits = 63 - (unsigned int)__builtin_clzll(end - first);
		if (fits < order)
			order = fits;
		out->orders[order]++;
		first += 1ull << order;
	}
}

/* The first run from @at to @end that is in @ledger and not in @without. */
static bool next_run(const struct uffdb_ledger *ledger, const struct uffdb_ledger *without,
		     uint64_t at, uint64_t end, struct uffdb_range *run)
{
	struct uffdb_range left_out;

	while (at < end && uffdb_ledger_next(ledger, at, end, run) > 0) {
		uint64_t run_end = run->start + run->len;

		if (!without || uffdb_ledger_next(without, run->start, run_end, &left_out) <= 0)
			return true;
		run->len = left_out.start - run->start;
		if (run->len)
			return true;
		at = left_out.start + left_out.len;
	}
	return false;
}

void uffdb_ledger_fragments(const struct uffdb_ledger *ledger, const struct uffdb_ledger *without,
			    const struct uffdb_range *of, uint64_t first_page,
			    struct uffdb_fragments *out)
{
	uint64_t at = of->start, end = of->start + of->len;
	struct uffdb_range run;

	for (; next_run(ledger, without, at, end, &run); at = run.start + run.len)
		add_run(out, first_page + (run.start - of->start) / UFFDB_PAGE,
			run.len / UFFDB_PAGE);
}

size_t uffdb_ledger_list(const struct uffdb_ledger *ledger, const struct uffdb_ledger *without,
			 const struct uffdb_range *of, struct uffdb_range *out, size_t nr)
{
	uint64_t at = of->start, end = of->start + of->len;
	size_t listed = 0;

	for (; listed < nr && next_run(ledger, without, at, end, &out[listed]); listed++)
		at = out[listed].start + out[listed].len;
	return listed;
}
