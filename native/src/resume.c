// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Going on where another engine was killed, with its userfaultfd and its ledger. What it was in
 * the middle of is put right before anybody who waits is woken; the loop is not running yet.
 */
#include "drop.h"
#include "engine.h"
#include "follow.h"
#include "ledger.h"
#include "observe.h"
#include "pagemap.h"
#include "reset.h"
#include "uffdballoon.h"
#include "windows.h"

#define RANGES 256

struct resumption {
	struct uffdb_engine *engine;
	const struct uffdb_block *block;
	struct uffdb_range inflating; /* what was being taken, and may not have been zapped */
	bool all;		      /* what else holds memory cannot have been touched unseen */
};

static bool is_within(const struct uffdb_range *range, uint64_t hva)
{
	return hva >= range->start && hva < range->start + range->len;
}

/* Zeros that a reader was given: memory of its own where there is no shared zero page. */
static bool is_zero_read(const struct resumption *of, uint64_t hva)
{
	return of->block->flags & (UFFDB_BLOCK_SHARED | UFFDB_BLOCK_HUGETLB) &&
	       uffdb_is_protected(of->engine->config.pagemap_fd, hva);
}

/* It is ballooned and holds memory: not zapped yet, or granted and not taken out yet. */
static void give_back_unzapped(struct uffdb_engine *engine, const struct uffdb_range *range,
			       void *argument)
{
	const struct resumption *of = argument;
	uint64_t size = uffdb_block_page(of->block);

	for (uint64_t at = range->start; at < range->start + range->len; at += size) {
		if (is_zero_read(of, at)) {
			uffdb_lend(engine, at, size, false);
			continue;
		}
		if (!of->all && !is_within(&of->inflating, at))
			continue;
		uffdb_ledger_clear(engine->ledger, at, size);
		uffdb_uffd_writeprotect(engine->config.uffd, at, size, false);
	}
}

static int arm_block(struct uffdb_engine *engine, const struct uffdb_block *block)
{
	uint64_t at = block->hva, end = at + block->size;
	struct uffdb_range run;
	int error = 0;

	while (!error && uffdb_ledger_next(engine->ledger, at, end, &run) > 0) {
		error = uffdb_windows_arm(engine->windows, run.start, run.len);
		at = run.start + run.len;
	}
	if (!error && engine->config.observing != UFFDB_OBSERVE_EVENTS)
		error = uffdb_windows_drop_unknown(engine->windows, block);
	return error;
}

/* A reader may have been given zeros whose protection the other engine did not come to. */
static void protect_zeros(struct uffdb_engine *engine, const struct uffdb_range *range,
			  void *argument)
{
	(void)argument;
	uffdb_uffd_writeprotect(engine->config.uffd, range->start, range->len, true);
}

static int resume_block(struct resumption *of)
{
	struct uffdb_engine *engine = of->engine;
	const struct uffdb_range whole = {of->block->hva, of->block->size};
	bool looks = engine->config.pagemap_fd >= 0;
	int error = 0;

	if (looks)
		error = uffdb_in_ballooned(engine, &whole, uffdb_resident, give_back_unzapped, of);
	if (!error)
		error = arm_block(engine, of->block);
	if (error)
		return error;
	/* An older kernel cannot tell zero pages. */
	if (looks && engine->config.write_protect)
		uffdb_in_ballooned(engine, &whole, uffdb_loose_zero_pages, protect_zeros, NULL);
	/* Faults that the other engine has read, and not answered, are read anew. */
	return uffdb_uffd_wake(engine->config.uffd, whole.start, whole.len);
}

static void take_over_contract(struct uffdb_engine *engine)
{
	const struct uffdb_contract *kept = uffdb_ledger_contract(engine->ledger);

	if (kept && kept->grace.runs && kept->terms.kind == engine->contract.terms.kind)
		engine->contract.grace = kept->grace;
}

int uffdb_engine_resume(struct uffdb_engine *engine, bool missed)
{
	struct uffdb_range *inflating = uffdb_ledger_inflating(engine->ledger);
	/* With a trace that went on, what holds memory may have been touched before its trap was
	 * there: the follower looks at it. */
	struct resumption of = {.engine = engine, .all = missed || !engine->observer};
	const struct uffdb_block *blocks;
	int error = 0;
	size_t nr;

	take_over_contract(engine);
	uffdb_hear_of_kept_reset(engine);
	if (inflating)
		of.inflating = *inflating;
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; !error && i < nr; i++) {
		of.block = &blocks[i];
		error = resume_block(&of);
	}
	if (error)
		return error;
	uffdb_engine_inflated(engine);
	if (engine->observer)
		uffdb_observe_on(engine, missed);
	return 0;
}
