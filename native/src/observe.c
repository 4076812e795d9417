// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the guest's own balloon gives up and takes back, as the fault loop learns
 * it: from the trace, which is drained before a fault is judged, or from REMOVE
 * events. Windows are armed by the controlling side (follow.c), which is told by
 * uffdb_windows_note_inflate().
 *
 * Sizes tell who discards. QEMU's balloon_inflate_page() discards one page of the
 * RAM block at a time; free page reporting, whole blocks of the guest's buddy
 * allocator (virtio_balloon_handle_report()).
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "clock.h"
#include "contract.h"
#include "counters.h"
#include "drop.h"
#include "engine.h"
#include "ledger.h"
#include "observe.h"
#include "pagemap.h"
#include "pages.h"
#include "pieces.h"
#include "settle.h"
#include "uffdballoon.h"
#include "windows.h"

static bool is_whole_page(const struct uffdb_block *block, uint64_t hva, uint64_t len)
{
	return len == uffdb_block_page(block) && !(hva & (len - 1));
}

/*
 * Was the page filled between its discard and now, by an answer to a touch beside
 * it? Then what is there is a zero page that nobody has written to, unprotected. An absent page
 * of shared memory is left alone: its protection would be a mark in the page table that looks like
 * memory that is swapped out.
 */
static void protect_filled(struct uffdb_engine *engine, const struct uffdb_block *block,
			   uint64_t hva, uint64_t len)
{
	if (block->flags & UFFDB_BLOCK_SHARED &&
	    !uffdb_holds_memory(engine->config.pagemap_fd, hva) &&
	    !uffdb_is_present(engine->config.pagemap_fd, hva))
		return;
	uffdb_uffd_writeprotect(engine->config.uffd, hva, len, true);
}

static void protect_if_filled(struct uffdb_engine *engine, const struct uffdb_change *given)
{
	const struct uffdb_block *block = uffdb_ledger_block(engine->ledger, given->hva);
	uint64_t step = block->flags & UFFDB_BLOCK_SHARED ? uffdb_block_page(block) : UFFDB_HUGE;

	if (given->time_ns > engine->answerer.last_fill_ns || !engine->config.write_protect)
		return;
	for (uint64_t at = given->hva, end = at + given->len; at < end; at += step)
		protect_filled(engine, block, at, step < end - at ? step : end - at);
}

/* Of what nobody traps, what is there may be from before: which it is not, where it is known. */
static void note_if_slack(struct uffdb_engine *engine, uint64_t start, uint64_t end)
{
	if (uffdb_windows_is_slack(engine->windows, start))
		uffdb_ledger_set(engine->observer->lately, start, end - start);
}

/* Each block that it reaches into. */
static void ask_for_windows(struct uffdb_engine *engine, const struct uffdb_change *given,
			    uint64_t known_ns)
{
	const uint64_t end = given->hva + given->len;

	for (uint64_t at = given->hva, next; at < end; at = next) {
		next = (at / UFFDB_HUGE + 1) * UFFDB_HUGE;
		note_if_slack(engine, at, next < end ? next : end);
		uffdb_windows_note_inflate(engine->windows, at, known_ns);
	}
}

static void remember(struct uffdb_observer *observer, const struct uffdb_change *change)
{
	observer->history[observer->nr_history++ % UFFDB_HISTORY] = *change;
}

/* Runs of one page after the other, up or down, as the guest gives them up. */
static void note_arrival(struct uffdb_observer *observer, uint64_t hva, uint64_t len)
{
	uint64_t run = observer->run_pages;

	if (run && (hva == observer->last_hva + len || hva + len == observer->last_hva)) {
		observer->run_pages++;
	} else {
		if (run)
			uffdb_count(&observer->arrivals[63 - __builtin_clzll(run)], 1);
		observer->run_pages = 1;
	}
	observer->last_hva = hva;
}

void uffdb_observe_certainty(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	if (engine->observer->doubt)
		uffdb_ledger_clear(engine->observer->doubtful, hva, len);
}

/* Of these no touch can be held against the guest, for they may have been taken back. */
static void doubt(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	if (engine->contract.terms.kind != UFFDB_CONTRACT_TOLD)
		return;
	uffdb_ledger_set(engine->observer->doubtful, hva, len);
	engine->observer->doubt = true;
}

static int64_t take_given(struct uffdb_engine *engine, const struct uffdb_change *given)
{
	struct uffdb_observer *observer = engine->observer;
	/* A log of an idle guest may be as old as its last drain: no delay is measured by that. */
	uint64_t known_ns = given->toggle ? observer->drain_ns : given->time_ns;
	int64_t pages = uffdb_ledger_set(engine->ledger, given->hva, given->len);

	uffdb_observe_certainty(engine, given->hva, given->len);
	uffdb_ledger_clear(observer->suspected, given->hva, given->len);
	if (given->reported && pages > 0)
		uffdb_ledger_set(observer->reported, given->hva, given->len);
	ask_for_windows(engine, given, known_ns);
	protect_if_filled(engine, given);
	return pages;
}

static int64_t give_taken(struct uffdb_engine *engine, const struct uffdb_change *taken)
{
	int64_t pages = uffdb_ledger_clear(engine->ledger, taken->hva, taken->len);

	uffdb_forget_reports(engine, taken->hva, taken->len);
	uffdb_observe_certainty(engine, taken->hva, taken->len);
	if (pages > 0)
		uffdb_windows_note_change(engine->windows, taken->hva);
	uffdb_let_go(engine, taken->hva, taken->len);
	return pages;
}

static void on_inflate(struct uffdb_engine *engine, const struct uffdb_change *given)
{
	/* The driver puts into the balloon what is free, and may have been reported so. */
	int64_t known =
		uffdb_ledger_pages(engine->observer->reported)
			? uffdb_ledger_clear(engine->observer->reported, given->hva, given->len)
			: 0;
	int64_t pages = take_given(engine, given) + known;

	remember(engine->observer, given);
	if (pages > 0) {
		note_arrival(engine->observer, given->hva, given->len);
		uffdb_count(&engine->observer->inflated, (uint64_t)pages);
	}
}

static void on_deflate(struct uffdb_engine *engine, const struct uffdb_change *taken)
{
	int64_t pages = give_taken(engine, taken);

	remember(engine->observer, taken);
	if (pages > 0)
		uffdb_count(&engine->observer->deflated, (uint64_t)pages);
}

void uffdb_observe_refusal(struct uffdb_engine *engine, const struct uffdb_range *range)
{
	const struct uffdb_change kept = {
		.time_ns = uffdb_now_ns(CLOCK_MONOTONIC),
		.hva = range->start,
		.len = range->len,
	};
	int64_t pages = give_taken(engine, &kept);

	uffdb_forget_pieces(engine, range->start, range->len);
	remember(engine->observer, &kept);
	uffdb_count(&engine->observer->inflated, pages > 0 ? -(uint64_t)pages : 0);
	uffdb_count(&engine->observer->refused, pages > 0 ? (uint64_t)pages : 0);
}

/* Of no piece it is certain any more that it was not taken back. What was punched stays so. */
static void keep_unpunched(struct uffdb_engine *engine)
{
	struct uffdb_pieces *pieces = engine->observer->pieces;
	const struct uffdb_block *blocks;
	size_t nr;

	blocks = uffdb_ledger_blocks(pieces->waiting, &nr);
	for (size_t i = 0; i < nr; i++) {
		uint64_t at = blocks[i].hva, end = at + blocks[i].size;
		struct uffdb_range run;

		for (; at < end && uffdb_ledger_next(pieces->waiting, at, end, &run) > 0;
		     at = run.start + run.len)
			uffdb_observe_refusal(engine, &run);
		uffdb_ledger_clear(pieces->given, blocks[i].hva, blocks[i].size);
	}
}

/*
 * Records are missing, deflates perhaps among them. Of what is ballooned by the
 * ledger no page can be held to `told`, until it is given up anew; and what is
 * there already was taken back, which a look at residency finds.
 */
static void on_lost(struct uffdb_engine *engine, uint64_t records)
{
	struct uffdb_observer *observer = engine->observer;
	const struct uffdb_block *blocks;
	size_t nr;

	uffdb_count(&observer->lost, records);
	uffdb_count(&observer->resyncs, 1);
	if (observer->toggles)
		uffdb_toggles_lost(observer->toggles);
	if (observer->pieces)
		keep_unpunched(engine);
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		uint64_t at = blocks[i].hva, end = at + blocks[i].size;
		struct uffdb_range run;

		while (uffdb_ledger_next(engine->ledger, at, end, &run) > 0) {
			doubt(engine, run.start, run.len);
			at = run.start + run.len;
		}
	}
	atomic_store(&observer->look_everywhere, true);
}

/* Whoever was before us knew which pages were reported free; whole blocks are taken for it. */
static void guess_reports(struct uffdb_engine *engine)
{
	const struct uffdb_block *blocks;
	struct uffdb_range run;
	size_t nr;

	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		uint64_t at = blocks[i].hva, end = at + blocks[i].size;

		while (at < end && uffdb_ledger_next(engine->ledger, at, end, &run) > 0) {
			uint64_t first = (run.start + UFFDB_HUGE - 1) & ~(UFFDB_HUGE - 1);
			uint64_t last = (run.start + run.len) & ~(UFFDB_HUGE - 1);

			if (first < last)
				uffdb_ledger_set(engine->observer->reported, first, last - first);
			at = run.start + run.len;
		}
	}
}

void uffdb_observe_on(struct uffdb_engine *engine, bool missed)
{
	if (uffdb_contract_counts_reports(&engine->contract))
		guess_reports(engine);
	if (missed) {
		on_lost(engine, 0);
		return;
	}
	/* Another engine may have filled what is told of next, or not have come to look at it. */
	engine->answerer.last_fill_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	atomic_store(&engine->observer->look_everywhere, true);
}

/* What is in the balloon already is no free page: it is our own zap that is seen. */
static void on_report(struct uffdb_engine *engine, const struct uffdb_block *block,
		      const struct uffdb_change *given)
{
	struct uffdb_change report = *given;
	uint64_t most = block->hva + block->size - given->hva;

	report.len = given->len < most ? given->len : most;
	if (!uffdb_contract_counts_reports(&engine->contract)) {
		if (uffdb_ledger_test(engine->ledger, report.hva) <= 0)
			uffdb_count(&engine->observer->reported_bytes, report.len);
		return;
	}
	report.reported = true;
	if (take_given(engine, &report) > 0) {
		remember(engine->observer, &report);
		uffdb_count(&engine->observer->reported_bytes, report.len);
		uffdb_count(&engine->observer->counted, report.len);
	}
}

/* Linux gives up 4 KiB at a time: an inflate is never all of a huge page of the host's. */
static bool is_report(const struct uffdb_engine *engine, const struct uffdb_block *block,
		      const struct uffdb_change *given)
{
	uint64_t page = uffdb_block_page(block);

	if (given->len % page || given->hva % page)
		return false;
	return given->len > page || (block->flags & UFFDB_BLOCK_HUGETLB &&
				     uffdb_contract_counts_reports(&engine->contract));
}

static void on_discard(struct uffdb_engine *engine, const struct uffdb_change *given)
{
	const struct uffdb_block *block = uffdb_ledger_block(engine->ledger, given->hva);

	if (!block)
		return;
	if (is_report(engine, block, given))
		on_report(engine, block, given);
	else if (is_whole_page(block, given->hva, given->len))
		on_inflate(engine, given);
}

static void on_willneed(struct uffdb_engine *engine, const struct uffdb_change *taken)
{
	const struct uffdb_block *block = uffdb_ledger_block(engine->ledger, taken->hva);

	if (block && is_whole_page(block, taken->hva, taken->len))
		on_deflate(engine, taken);
}

/*
 * A page of a huge RAM block is given up in pieces, which change nothing until all of them are in
 * the driver's balloon. Then the block is, and gather.c gives its memory back.
 */
static bool is_piece(const struct uffdb_engine *engine, uint64_t hva)
{
	const struct uffdb_block *block = uffdb_ledger_block(engine->ledger, hva);

	return !block || uffdb_block_page(block) != UFFDB_PAGE;
}

static struct uffdb_change whole_of(const struct uffdb_change *piece)
{
	struct uffdb_change whole = *piece;

	whole.hva &= ~(UFFDB_HUGE - 1);
	whole.len = UFFDB_HUGE;
	return whole;
}

/* What cannot be protected and punched is left alone: a deflate could not be told in time. */
static bool is_gathered(const struct uffdb_engine *engine, uint64_t block)
{
	return uffdb_pieces_are_all(engine->observer->pieces, block) &&
	       uffdb_ledger_count(engine->ledger, block, UFFDB_HUGE) == 0 &&
	       engine->config.write_protect_shared && uffdb_can_drop(engine, block);
}

static void give_piece(struct uffdb_engine *engine, const struct uffdb_change *piece)
{
	struct uffdb_observer *observer = engine->observer;
	struct uffdb_change whole = whole_of(piece);

	uffdb_ledger_set(observer->pieces->given, piece->hva, piece->len);
	if (!is_gathered(engine, whole.hva))
		return;
	uffdb_count(&observer->inflated, (uint64_t)take_given(engine, &whole));
	uffdb_pieces_wait(observer->pieces, whole.hva);
}

/* Of a block that is in the balloon it takes all of it: the kernel fills huge pages whole. */
static void take_piece_back(struct uffdb_engine *engine, const struct uffdb_change *piece)
{
	struct uffdb_observer *observer = engine->observer;
	struct uffdb_change whole = whole_of(piece);

	uffdb_ledger_clear(observer->pieces->given, piece->hva, piece->len);
	if (uffdb_ledger_test(engine->ledger, piece->hva) <= 0)
		return;
	uffdb_pieces_leave(observer->pieces, whole.hva, whole.len);
	uffdb_count(&observer->deflated, (uint64_t)give_taken(engine, &whole));
}

/* It is taken back as soon as it is told, and given once the driver has counted it. */
static void on_piece(struct uffdb_engine *engine, const struct uffdb_change *piece)
{
	if (!engine->observer->pieces)
		return;
	remember(engine->observer, piece);
	if (piece->inflate)
		note_arrival(engine->observer, piece->hva, piece->len);
	else
		take_piece_back(engine, piece);
}

static uint32_t span_ms(const struct uffdb_observer *observer, uint64_t time_ns)
{
	uint64_t span = (observer->drain_ns - time_ns) / UFFDB_NS_PER_MS + 1;

	return span < UINT32_MAX ? (uint32_t)span : UINT32_MAX;
}

static void on_toggle(struct uffdb_engine *engine, const struct uffdb_traced *record)
{
	struct uffdb_observer *observer = engine->observer;
	struct uffdb_toggles *toggles = observer->toggles;
	struct uffdb_change change = {
		.time_ns = record->time_ns,
		.hva = record->hva,
		.len = record->len,
		.toggle = true,
		.span_ms = span_ms(observer, record->time_ns),
	};

	if (!uffdb_ledger_block(engine->ledger, change.hva))
		return;
	if (!uffdb_toggles_begin(toggles))
		uffdb_count(&observer->resyncs, 1);
	change.inflate =
		uffdb_toggles_flip(toggles, change.hva, uffdb_is_doubtful(engine, change.hva));
	if (is_piece(engine, change.hva)) {
		on_piece(engine, &change);
		return;
	}
	if (!change.inflate) {
		on_deflate(engine, &change);
		return;
	}
	on_inflate(engine, &change);
	if (!uffdb_toggles_is_certain(toggles))
		doubt(engine, change.hva, change.len);
}

struct counting {
	struct uffdb_engine *engine;
	struct uffdb_change change;
	bool resynced;
};

/* It was taken for a deflate: the page comes in again. */
static void undo_deflate(struct counting *counting, bool certain)
{
	struct uffdb_engine *engine = counting->engine;
	int64_t pages;

	counting->change.inflate = true;
	pages = take_given(engine, &counting->change);
	remember(engine->observer, &counting->change);
	uffdb_count(&engine->observer->deflated, pages > 0 ? -(uint64_t)pages : 0);
	if (!certain)
		doubt(engine, counting->change.hva, counting->change.len);
}

/* It was taken for an inflate: the page is the guest's. */
static void undo_inflate(struct counting *counting)
{
	struct uffdb_engine *engine = counting->engine;
	int64_t pages;

	counting->change.inflate = false;
	pages = give_taken(engine, &counting->change);
	remember(engine->observer, &counting->change);
	uffdb_count(&engine->observer->inflated, pages > 0 ? -(uint64_t)pages : 0);
}

/*
 * What is punched is gone, so that it has to be certain: a batch in which all came in by the
 * count, or one after which nothing else can be in the balloon.
 */
static void settle_piece(struct counting *counting, const struct uffdb_toggle *toggle,
			 uint32_t meaning, bool certain)
{
	struct uffdb_engine *engine = counting->engine;
	const struct uffdb_toggles *toggles = engine->observer->toggles;
	bool sure = certain && (uffdb_toggles_is_certain(toggles) ||
				meaning != UFFDB_TOGGLE_RIGHT || toggles->nr_in == toggles->nr);

	if (!engine->observer->pieces || meaning == UFFDB_TOGGLE_UNEXPLAINED)
		return;
	counting->change.hva = toggle->hva;
	counting->resynced |= meaning == UFFDB_TOGGLE_IN || meaning == UFFDB_TOGGLE_OUT;
	uffdb_count(&engine->observer->given_twice, meaning == UFFDB_TOGGLE_GIVEN_TWICE);
	if (meaning == UFFDB_TOGGLE_OUT || (meaning == UFFDB_TOGGLE_RIGHT && !toggle->in))
		take_piece_back(engine, &counting->change);
	else if (sure)
		give_piece(engine, &counting->change);
}

static void on_meaning(void *argument, const struct uffdb_toggle *toggle, uint32_t meaning,
		       bool certain)
{
	struct counting *counting = argument;
	struct uffdb_engine *engine = counting->engine;

	if (is_piece(engine, toggle->hva)) {
		settle_piece(counting, toggle, meaning, certain);
		return;
	}
	counting->change.hva = toggle->hva;
	switch (meaning) {
	case UFFDB_TOGGLE_RIGHT:
		if (toggle->in && certain)
			uffdb_observe_certainty(engine, toggle->hva, UFFDB_PAGE);
		break;
	case UFFDB_TOGGLE_GIVEN_TWICE:
		uffdb_count(&engine->observer->given_twice, 1);
		undo_deflate(counting, certain);
		break;
	case UFFDB_TOGGLE_IN:
		counting->resynced = true;
		undo_deflate(counting, certain);
		break;
	case UFFDB_TOGGLE_OUT:
		counting->resynced = true;
		undo_inflate(counting);
		break;
	default:
		if (toggle->in && uffdb_ledger_test(engine->ledger, toggle->hva) > 0)
			doubt(engine, toggle->hva, UFFDB_PAGE);
		break;
	}
}

static void on_count(struct uffdb_engine *engine, const struct uffdb_traced *record)
{
	struct uffdb_observer *observer = engine->observer;
	struct counting counting = {
		.engine = engine,
		.change =
			{
				.time_ns = record->time_ns,
				.len = UFFDB_PAGE,
				.toggle = true,
				.span_ms = span_ms(observer, record->time_ns),
			},
	};

	uffdb_toggles_count(observer->toggles, record->hva, record->len, on_meaning, &counting);
	uffdb_count(&observer->resyncs, counting.resynced);
}

void uffdb_observe_no_reports(struct uffdb_engine *engine)
{
	struct uffdb_ledger *reported = engine->observer->reported;
	const struct uffdb_block *blocks;
	struct uffdb_range run;
	size_t nr;

	blocks = uffdb_ledger_blocks(reported, &nr);
	for (size_t i = 0; i < nr; i++) {
		uint64_t at = blocks[i].hva, end = at + blocks[i].size;

		for (; at < end && uffdb_ledger_next(reported, at, end, &run) > 0;
		     at = run.start + run.len) {
			uffdb_ledger_clear(reported, run.start, run.len);
			uffdb_ledger_clear(engine->ledger, run.start, run.len);
			uffdb_observe_certainty(engine, run.start, run.len);
			uffdb_let_go(engine, run.start, run.len);
		}
	}
	uffdb_windows_note_all(engine->windows);
}

/* Drained after a reset that it came before: the balloon of then is gone. */
static bool is_past(const struct uffdb_engine *engine, const struct uffdb_traced *record)
{
	return record->kind != UFFDB_TRACED_LOST && record->time_ns <= engine->reset_ns;
}

static void on_record(void *argument, const struct uffdb_traced *record)
{
	struct uffdb_engine *engine = argument;
	const struct uffdb_change change = {
		.time_ns = record->time_ns,
		.hva = record->hva,
		.len = record->len,
		.inflate = record->kind == UFFDB_TRACED_DISCARD,
	};

	if (is_past(engine, record)) {
		if (record->kind == UFFDB_TRACED_TOGGLE)
			uffdb_toggles_lost(engine->observer->toggles);
		return;
	}
	switch (record->kind) {
	case UFFDB_TRACED_DISCARD:
		on_discard(engine, &change);
		break;
	case UFFDB_TRACED_WILLNEED:
		on_willneed(engine, &change);
		break;
	case UFFDB_TRACED_TOGGLE:
		on_toggle(engine, record);
		break;
	case UFFDB_TRACED_ACTUAL:
		on_count(engine, record);
		break;
	default:
		on_lost(engine, record->len);
		break;
	}
}

void uffdb_observe(struct uffdb_engine *engine)
{
	struct uffdb_observer *observer = engine->observer;

	if (observer->toggles)
		observer->drain_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	if (observer->trace)
		uffdb_count(&observer->traced,
			    uffdb_trace_drain(observer->trace, on_record, engine));
}

void uffdb_observe_removal(struct uffdb_engine *engine, uint64_t start, uint64_t end)
{
	const struct uffdb_change given = {
		.time_ns = uffdb_now_ns(CLOCK_MONOTONIC),
		.hva = start,
		.len = end - start,
		.inflate = true,
	};

	on_discard(engine, &given);
}

/* RAM that is mapped no more, or elsewhere, is nothing that we could hold a guest to. */
void uffdb_observe_unmapping(struct uffdb_engine *engine, uint64_t start, uint64_t end)
{
	const struct uffdb_block *blocks;
	size_t nr;

	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		uint64_t from = start > blocks[i].hva ? start : blocks[i].hva;
		uint64_t to = blocks[i].hva + blocks[i].size;

		to = end < to ? end : to;
		if (from >= to)
			continue;
		uffdb_ledger_clear(engine->ledger, from, to - from);
		uffdb_forget_reports(engine, from, to - from);
		uffdb_forget_pieces(engine, from, to - from);
		uffdb_windows_note_change(engine->windows, from);
		uffdb_let_go(engine, from, to - from);
		uffdb_count(&engine->counters.gone, (to - from) / UFFDB_PAGE);
	}
}

bool uffdb_is_doubtful(const struct uffdb_engine *engine, uint64_t hva)
{
	return engine->observer->doubt && uffdb_ledger_test(engine->observer->doubtful, hva) > 0;
}

/* Can it have come after a reset, which it is not sure to have done? */
static bool is_on_both_sides(const struct uffdb_change *change, uint64_t at_ns)
{
	return change->toggle && change->time_ns <= at_ns &&
	       change->time_ns + change->span_ms * UFFDB_NS_PER_MS > at_ns;
}

/* What is not certain to have come later was the old balloon's; if it wasn't, toggles mislead. */
static void reset_toggles(struct uffdb_observer *observer, uint64_t from, uint64_t at_ns)
{
	bool sure = true;

	if (!observer->toggles)
		return;
	for (; at_ns && from < observer->nr_history; from++)
		if (is_on_both_sides(&observer->history[from % UFFDB_HISTORY], at_ns))
			sure = false;
	uffdb_toggles_reset(observer->toggles, sure);
}

/* After a reset, with an empty ledger: what came later than @at_ns holds. */
void uffdb_observe_again(struct uffdb_engine *engine, uint64_t at_ns)
{
	struct uffdb_observer *observer = engine->observer;
	uint64_t kept = observer->nr_history, from;
	const struct uffdb_block *blocks;
	size_t nr;

	kept = kept < UFFDB_HISTORY ? kept : UFFDB_HISTORY;
	from = observer->nr_history - kept;
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		uffdb_ledger_clear(observer->doubtful, blocks[i].hva, blocks[i].size);
		uffdb_ledger_clear(observer->suspected, blocks[i].hva, blocks[i].size);
		uffdb_ledger_clear(observer->reported, blocks[i].hva, blocks[i].size);
		uffdb_forget_pieces(engine, blocks[i].hva, blocks[i].size);
	}
	observer->doubt = false;
	reset_toggles(observer, from, at_ns);
	for (; at_ns && from < observer->nr_history; from++) {
		const struct uffdb_change *change = &observer->history[from % UFFDB_HISTORY];

		if (change->time_ns <= at_ns)
			continue;
		if (change->toggle)
			uffdb_toggles_again(observer->toggles, change->hva, change->inflate);
		/* What is whole is not, until all of it is given anew. */
		if (change->toggle && is_piece(engine, change->hva))
			continue;
		if (change->inflate)
			take_given(engine, change);
		else
			give_taken(engine, change);
	}
}

int uffdb_observer_create(struct uffdb_engine *engine)
{
	struct uffdb_observer *observer = calloc(1, sizeof(*observer));
	const struct uffdb_block *blocks;
	size_t nr;
	int error;

	engine->observer = observer;
	if (!observer)
		return -ENOMEM;
	observer->trace = engine->config.trace;
	observer->history = calloc(UFFDB_HISTORY, sizeof(*observer->history));
	if (!observer->history)
		return -ENOMEM;
	if (observer->trace && observer->trace->config.by == UFFDB_TRACE_BY_LOG) {
		error = uffdb_toggles_create(engine->ledger, &observer->toggles);
		if (!error)
			error = uffdb_pieces_create(engine->ledger, &observer->pieces);
		if (error)
			return error;
	}
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	error = uffdb_ledger_create(blocks, nr, &observer->doubtful);
	if (!error)
		error = uffdb_ledger_create(blocks, nr, &observer->suspected);
	if (!error)
		error = uffdb_ledger_create(blocks, nr, &observer->reported);
	if (!error)
		error = uffdb_ledger_create(blocks, nr, &observer->lately);
	if (!error && engine->config.observing == UFFDB_OBSERVE_SCAN)
		error = uffdb_ledger_create(blocks, nr, &observer->seen);
	return error;
}

void uffdb_observer_destroy(struct uffdb_observer *observer)
{
	if (!observer)
		return;
	uffdb_ledger_destroy(observer->seen);
	uffdb_ledger_destroy(observer->lately);
	uffdb_ledger_destroy(observer->reported);
	uffdb_ledger_destroy(observer->suspected);
	uffdb_ledger_destroy(observer->doubtful);
	uffdb_pieces_destroy(observer->pieces);
	uffdb_toggles_destroy(observer->toggles);
	free(observer->history);
	free(observer);
}
