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

void uffdb_ledger_fragments(const struct uffdb_ledger *ledger, const struct uffdb_ledger *without,
			    const struct uffdb_range *of, uint64_t first_page,
			    struct uffdb_fragments *out)
{
	uint64_t at = of->start, end = of->start + of->len;
	struct uffdb_range run, left_out;

	while (at < end && uffdb_ledger_next(ledger, at, end, &run) > 0) {
		uint64_t run_end = run.start + run.len;

		for (at = run.start; at < run_end;) {
			uint64_t to = run_end, next = run_end;

			if (without && uffdb_ledger_next(without, at, run_end, &left_out) > 0) {
				to = left_out.start;
				next = left_out.start + left_out.len;
			}
			if (to > at)
				add_run(out, first_page + (at - of->start) / UFFDB_PAGE,
					(to - at) / UFFDB_PAGE);
			at = next;
		}
	}
}
