// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A page that is not in the driver's balloon can only come in, and one that is in it can only go
 * out. That is wrong for a page that is given twice, and after lines were lost. The driver's own
 * count tells: Linux's driver writes it after each queue element of up to 256 pages. What was told
 * since it was written last must add up to the difference, or would if all of it had been inflates,
 * or all of it deflates.
 *
 * It must add up exactly. Linux's driver moves pages by an inflate and a deflate that leave the
 * count as it is (balloon compaction), and of a legacy device it writes the count byte by byte,
 * with a line for each, of which the first ones may be far off. Whatever does not add up makes
 * pages doubtful, and none of them the balloon's.
 */
#include <errno.h>
#include <stdlib.h>

#include "ledger.h"
#include "pages.h"
#include "toggles.h"

/* What another manager has followed up to now. */
static void take_over(struct uffdb_toggles *toggles, const struct uffdb_ledger *ledger)
{
	const struct uffdb_block *blocks;
	size_t nr;

	blocks = uffdb_ledger_blocks(ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		uint64_t at = blocks[i].hva, end = at + blocks[i].size;
		struct uffdb_range run;

		while (at < end && uffdb_ledger_next(ledger, at, end, &run) > 0) {
			uffdb_ledger_set(toggles->driver, run.start, run.len);
			at = run.start + run.len;
		}
	}
}

int uffdb_toggles_create(const struct uffdb_ledger *ledger, struct uffdb_toggles **out)
{
	struct uffdb_toggles *toggles = calloc(1, sizeof(*toggles));
	int error;

	if (!toggles)
		return -ENOMEM;
	toggles->batch = calloc(UFFDB_TOGGLES, sizeof(*toggles->batch));
	error = toggles->batch ? uffdb_ledger_create_of_pages(ledger, &toggles->driver) : -ENOMEM;
	if (error) {
		uffdb_toggles_destroy(toggles);
		return error;
	}
	take_over(toggles, ledger);
	*out = toggles;
	return 0;
}

void uffdb_toggles_destroy(struct uffdb_toggles *toggles)
{
	if (!toggles)
		return;
	uffdb_ledger_destroy(toggles->driver);
	free(toggles->batch);
	free(toggles);
}

static void empty_batch(struct uffdb_toggles *toggles)
{
	toggles->nr = toggles->nr_in = 0;
	toggles->torn = toggles->counted = toggles->settled = false;
}

static void empty_driver(struct uffdb_toggles *toggles)
{
	const struct uffdb_block *blocks;
	size_t nr;

	blocks = uffdb_ledger_blocks(toggles->driver, &nr);
	for (size_t i = 0; i < nr; i++)
		uffdb_ledger_clear(toggles->driver, blocks[i].hva, blocks[i].size);
}

bool uffdb_toggles_begin(struct uffdb_toggles *toggles)
{
	bool explained = !toggles->counted || toggles->settled;

	if (toggles->counted) {
		toggles->sure = toggles->sure && explained;
		toggles->base = toggles->latest;
		empty_batch(toggles);
	}
	return explained;
}

static void put(struct uffdb_toggles *toggles, uint64_t hva, bool in)
{
	if (in)
		uffdb_ledger_set(toggles->driver, hva, UFFDB_PAGE);
	else
		uffdb_ledger_clear(toggles->driver, hva, UFFDB_PAGE);
}

static void note_toggle(struct uffdb_toggles *toggles, struct uffdb_toggle toggle)
{
	put(toggles, toggle.hva, toggle.in);
	toggles->batch[toggles->nr++ % UFFDB_TOGGLES] = toggle;
	toggles->nr_in += toggle.in;
}

bool uffdb_toggles_flip(struct uffdb_toggles *toggles, uint64_t hva, bool doubtful)
{
	bool in = uffdb_ledger_test(toggles->driver, hva) <= 0;

	note_toggle(toggles, (struct uffdb_toggle){hva, in, doubtful});
	return in;
}

void uffdb_toggles_again(struct uffdb_toggles *toggles, uint64_t hva, bool in)
{
	note_toggle(toggles, (struct uffdb_toggle){hva, in, false});
}

bool uffdb_toggles_is_certain(const struct uffdb_toggles *toggles)
{
	return toggles->sure && !toggles->torn;
}

enum explanation {
	AS_TOLD,
	ALL_IN,
	ALL_OUT,
	NONE
};

static enum explanation explain(const struct uffdb_toggles *toggles, int64_t difference,
				bool *certain)
{
	int64_t all = (int64_t)toggles->nr, in = (int64_t)toggles->nr_in;

	*certain = true;
	if (difference == in - (all - in))
		return AS_TOLD;
	if (difference == all)
		return ALL_IN;
	if (difference == -all)
		return ALL_OUT;
	/* Those that are here are the last of a batch that went one way, as most do. */
	*certain = false;
	if (toggles->torn && difference > all)
		return ALL_IN;
	return toggles->torn && difference < -all ? ALL_OUT : NONE;
}

static uint32_t meaning_of(const struct uffdb_toggle *toggle, enum explanation explanation)
{
	switch (explanation) {
	case ALL_IN:
		if (toggle->in)
			return UFFDB_TOGGLE_RIGHT;
		return toggle->doubtful ? UFFDB_TOGGLE_IN : UFFDB_TOGGLE_GIVEN_TWICE;
	case ALL_OUT:
		return toggle->in ? UFFDB_TOGGLE_OUT : UFFDB_TOGGLE_RIGHT;
	case AS_TOLD:
		return UFFDB_TOGGLE_RIGHT;
	default:
		return UFFDB_TOGGLE_UNEXPLAINED;
	}
}

static void settle_all(struct uffdb_toggles *toggles, enum explanation explanation, bool certain,
		       uffdb_meaning_fn *each, void *argument)
{
	uint64_t from = toggles->nr > UFFDB_TOGGLES ? toggles->nr - UFFDB_TOGGLES : 0;

	for (; from < toggles->nr; from++) {
		const struct uffdb_toggle *toggle = &toggles->batch[from % UFFDB_TOGGLES];

		if (explanation == ALL_IN || explanation == ALL_OUT)
			put(toggles, toggle->hva, explanation == ALL_IN);
		each(argument, toggle, meaning_of(toggle, explanation), certain);
	}
}

/* A count without a toggle: the first of all, or one that runs ahead of its lines. */
static void take_count_alone(struct uffdb_toggles *toggles, uint64_t before, uint64_t count)
{
	if (!toggles->base_is_known) {
		toggles->base = count;
		toggles->base_is_known = true;
		toggles->torn = false;
	}
	if (!before && !count) {
		empty_driver(toggles);
		toggles->sure = true;
	}
}

void uffdb_toggles_count(struct uffdb_toggles *toggles, uint64_t before, uint64_t count,
			 uffdb_meaning_fn *each, void *argument)
{
	enum explanation explanation;
	bool certain;

	if (!toggles->nr) {
		take_count_alone(toggles, before, count);
		return;
	}
	if (!toggles->base_is_known)
		toggles->base = before;
	toggles->base_is_known = true;
	toggles->latest = count;
	/* It may be written for another reason than that it changed. */
	if (!toggles->counted && count == toggles->base)
		return;
	toggles->counted = true;
	if (toggles->settled)
		return;
	explanation = explain(toggles, (int64_t)(count - toggles->base), &certain);
	toggles->settled = explanation != NONE;
	settle_all(toggles, explanation, certain, each, argument);
	if (certain && !count)
		empty_driver(toggles);
	if (certain && (!toggles->base || !count))
		toggles->sure = true;
}

void uffdb_toggles_lost(struct uffdb_toggles *toggles)
{
	empty_batch(toggles);
	toggles->torn = true;
	toggles->base_is_known = false;
	toggles->sure = false;
}

void uffdb_toggles_reset(struct uffdb_toggles *toggles, bool sure)
{
	empty_driver(toggles);
	empty_batch(toggles);
	toggles->base = 0;
	toggles->base_is_known = true;
	toggles->sure = sure;
}
