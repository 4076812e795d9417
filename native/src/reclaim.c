// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Give back what is zapped out of huge pages. A 4k zap inside of one frees nothing:
 * the rest keeps the whole of it, until the host is short of memory and its deferred
 * split queue is walked.
 *
 * MADV_COLD splits a huge page that it is asked for a part of, from outside and with
 * nothing stopped (madvise_cold_or_pageout_pte_range(), mm/madvise.c). It ages what
 * it is asked for. So it is asked for one page of each, which is enough. The split
 * also maps owned pages that hold nothing but zeros to the zero page (Linux 6.12,
 * try_to_map_unused_to_zeropage()): the guest sees the same, at no memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bitmap.h"
#include "clock.h"
#include "engine.h"
#include "ledger.h"
#include "pagemap.h"
#include "pages.h"
#include "uffdballoon.h"
#include "windows.h"

#define PAGES	  (UFFDB_HUGE / UFFDB_PAGE)
#define MAX_BATCH 16 /* blocks a call, which holds the lock of the mappings: some 4 ms */
#define MAX_TRIES 8
#define MAX_LOOKS (1u << 16) /* at counters at a time: some 2 ms */
#define COLD	  20	     /* MADV_COLD */

#define ENTRY_PRESENT (1ull << 63)
#define ENTRY_PFN     ((1ull << 55) - 1)

/* Documentation/admin-guide/mm/pagemap.rst */
#define KPF_COMPOUND_HEAD (1ull << 15)
#define KPF_COMPOUND_TAIL (1ull << 16)
#define KPF_ZERO_PAGE	  (1ull << 24)

enum state {
	UNKNOWN,
	WAITING, /* got ballooned pages of late, or is to be tried again */
	READY,	 /* got none since */
	SPLIT,	 /* was seen without a huge page that ballooned pages are a part of */
	FAILED,
};

struct reach {
	const struct uffdb_block *block;
	uint64_t first_huge; /* number of the first 2 MiB block of the address space */
	uint64_t units;
	uint8_t *states;
	uint8_t *tries;
};

struct uffdb_reclaimer {
	struct uffdb_reclaim_config config;
	struct uffdb_ledger *ledger;
	struct reach *reaches;
	size_t nr;
	uint64_t taken_ns; /* when marks were taken last */
	struct uffdb_reclaim_stats stats;
};

/* What there is to know of one 2 MiB block. */
struct picture {
	struct uffdb_range range; /* clipped to its RAM block */
	uint32_t pages;
	bool ballooned[PAGES];
	uint64_t entries[PAGES];
	uint32_t pinned; /* ballooned pages of a huge page that others are mapped of */
	uint32_t mapped; /* that are there themselves: their zap is under way, perhaps */
	uint32_t nr_advise;
	uint64_t advise[PAGES]; /* a page of each huge page that pins */
};

struct batch {
	struct reach *reaches[MAX_BATCH];
	uint64_t units[MAX_BATCH];
	uint32_t pinned[MAX_BATCH];
	size_t nr;
	struct uffdb_range ranges[1024];
	size_t nr_ranges;
};

static struct uffdb_range range_of_unit(const struct reach *reach, uint64_t unit)
{
	uint64_t start = (reach->first_huge + unit) * UFFDB_HUGE, end = start + UFFDB_HUGE;

	if (start < reach->block->hva)
		start = reach->block->hva;
	if (end > reach->block->hva + reach->block->size)
		end = reach->block->hva + reach->block->size;
	return (struct uffdb_range){start, end - start};
}

static uint32_t find_ballooned(struct uffdb_reclaimer *reclaimer, struct picture *picture)
{
	uint64_t start = picture->range.start, end = start + picture->range.len, at = start;
	struct uffdb_range run;
	uint32_t count = 0;

	memset(picture->ballooned, 0, sizeof(picture->ballooned));
	while (at < end && uffdb_ledger_next(reclaimer->ledger, at, end, &run) > 0) {
		uint64_t first = (run.start - start) / UFFDB_PAGE, nr = run.len / UFFDB_PAGE;

		memset(picture->ballooned + first, 1, nr);
		count += (uint32_t)nr;
		at = run.start + run.len;
	}
	return count;
}

static int read_entries(struct uffdb_reclaimer *reclaimer, struct picture *picture)
{
	size_t want = picture->pages * sizeof(uint64_t);
	off_t at = (off_t)(picture->range.start / UFFDB_PAGE * sizeof(uint64_t));
	ssize_t got = pread(reclaimer->config.pagemap_fd, picture->entries, want, at);

	if (got < 0)
		return -errno;
	return (size_t)got == want ? 0 : -ESRCH; /* its memory is gone */
}

/* Read flags of pages [pfn, pfn + nr). Return: how many there were. */
static size_t read_flags(struct uffdb_reclaimer *reclaimer, uint64_t pfn, uint64_t *flags,
			 size_t nr)
{
	ssize_t got = pread(reclaimer->config.kpageflags_fd, flags, nr * sizeof(*flags),
			    (off_t)(pfn * sizeof(*flags)));

	return got < 0 ? 0 : (size_t)got / sizeof(*flags);
}

static bool is_there(const struct picture *picture, uint32_t page)
{
	return picture->entries[page] & ENTRY_PRESENT;
}

/*
 * Page @page is mapped of a huge page: find where that begins and ends, in pages of the
 * block, which may be beyond its edges.
 */
static void find_folio(struct uffdb_reclaimer *reclaimer, const struct picture *picture,
		       uint32_t page, int64_t *first, int64_t *last)
{
	uint64_t pfn = picture->entries[page] & ENTRY_PFN, flags[2 * PAGES];
	uint64_t from = pfn < PAGES - 1 ? 0 : pfn - (PAGES - 1), head = pfn, end = pfn + 1;
	size_t nr = read_flags(reclaimer, from, flags, 2 * PAGES - 1);

	while (head > from && head - from < nr && !(flags[head - from] & KPF_COMPOUND_HEAD))
		head--;
	while (end - from < nr && flags[end - from] & KPF_COMPOUND_TAIL)
		end++;
	*first = (int64_t)page - (int64_t)(pfn - head);
	*last = (int64_t)page + (int64_t)(end - pfn);
}

/* Add up what is ballooned of a huge page. Return: the pages that it pins. */
static uint32_t count_ballooned(struct picture *picture, uint32_t page, int64_t first, int64_t last)
{
	uint64_t head = (picture->entries[page] & ENTRY_PFN) - (uint64_t)(page - first);
	uint32_t pinned = 0;

	for (int64_t i = first < 0 ? 0 : first; i < last && i < picture->pages; i++) {
		bool mapped = is_there(picture, (uint32_t)i) &&
			      (picture->entries[i] & ENTRY_PFN) == head + (uint64_t)(i - first);

		pinned += picture->ballooned[i] && !mapped;
		picture->mapped += picture->ballooned[i] && mapped;
	}
	picture->pinned += pinned;
	return pinned;
}

/* Find the huge pages that are still there for some pages, and hold ballooned ones. */
static void find_pinned(struct uffdb_reclaimer *reclaimer, struct picture *picture)
{
	uint32_t page = 0;

	picture->pinned = picture->mapped = picture->nr_advise = 0;
	while (page < picture->pages) {
		int64_t first = page, last = page + 1;
		uint64_t flags = 0;

		if (is_there(picture, page))
			read_flags(reclaimer, picture->entries[page] & ENTRY_PFN, &flags, 1);
		if (flags & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL) && !(flags & KPF_ZERO_PAGE)) {
			find_folio(reclaimer, picture, page, &first, &last);
			if (count_ballooned(picture, page, first, last))
				picture->advise[picture->nr_advise++] =
					picture->range.start + page * UFFDB_PAGE;
		}
		page = last > page ? (uint32_t)last : page + 1;
	}
}

/* Who cannot tell huge pages asks for the first page that is there. */
static void guess_pinned(struct picture *picture)
{
	picture->pinned = picture->mapped = picture->nr_advise = 0;
	for (uint32_t page = 0; page < picture->pages && !picture->nr_advise; page++)
		if (is_there(picture, page))
			picture->advise[picture->nr_advise++] =
				picture->range.start + page * UFFDB_PAGE;
}

/* Return: number of ballooned pages, or -errno. */
static int look_at_unit(struct uffdb_reclaimer *reclaimer, const struct reach *reach, uint64_t unit,
			struct picture *picture)
{
	uint32_t ballooned;
	int error;

	picture->range = range_of_unit(reach, unit);
	picture->pages = (uint32_t)(picture->range.len / UFFDB_PAGE);
	picture->pinned = picture->mapped = picture->nr_advise = 0;
	ballooned = find_ballooned(reclaimer, picture);
	if (!ballooned)
		return 0;
	error = read_entries(reclaimer, picture);
	if (error)
		return error;
	if (reclaimer->stats.sees_folios)
		find_pinned(reclaimer, picture);
	else
		guess_pinned(picture);
	return (int)ballooned;
}

/* pagemap hides frame numbers from who lacks CAP_SYS_ADMIN; look at a page of our own. */
static bool sees_folios(const struct uffdb_reclaim_config *config, const void *own)
{
	off_t at = (off_t)((uintptr_t)own / UFFDB_PAGE * sizeof(uint64_t));
	uint64_t entry = 0, flags;
	int fd;

	if (config->kpageflags_fd < 0)
		return false;
	fd = uffdb_open_own_pagemap();
	if (fd < 0)
		return false;
	if (pread(fd, &entry, sizeof(entry), at) != sizeof(entry))
		entry = 0;
	close(fd);
	return entry & ENTRY_PFN &&
	       pread(config->kpageflags_fd, &flags, sizeof(flags),
		     (off_t)((entry & ENTRY_PFN) * sizeof(flags))) == sizeof(flags);
}

static int make_reaches(struct uffdb_reclaimer *reclaimer)
{
	const struct uffdb_block *blocks = uffdb_ledger_blocks(reclaimer->ledger, &reclaimer->nr);

	reclaimer->reaches = calloc(reclaimer->nr + 1, sizeof(*reclaimer->reaches));
	if (!reclaimer->reaches)
		return -ENOMEM;
	for (size_t i = 0; i < reclaimer->nr; i++) {
		struct reach *reach = &reclaimer->reaches[i];

		reach->block = &blocks[i];
		reach->first_huge = blocks[i].hva / UFFDB_HUGE;
		reach->units = uffdb_block_units(&blocks[i]);
		reach->states = calloc(reach->units, 1);
		reach->tries = calloc(reach->units, 1);
		if (!reach->states || !reach->tries)
			return -ENOMEM;
	}
	return 0;
}

int uffdb_reclaimer_create(const struct uffdb_reclaim_config *config, struct uffdb_ledger *ledger,
			   struct uffdb_reclaimer **out)
{
	struct uffdb_reclaimer *reclaimer = calloc(1, sizeof(*reclaimer));
	int error;

	if (!reclaimer)
		return -ENOMEM;
	reclaimer->config = *config;
	reclaimer->ledger = ledger;
	reclaimer->stats.sees_folios = sees_folios(config, reclaimer);
	error = make_reaches(reclaimer);
	if (error) {
		uffdb_reclaimer_destroy(reclaimer);
		return error;
	}
	*out = reclaimer;
	return 0;
}

void uffdb_reclaimer_destroy(struct uffdb_reclaimer *reclaimer)
{
	if (!reclaimer)
		return;
	for (size_t i = 0; reclaimer->reaches && i < reclaimer->nr; i++) {
		free(reclaimer->reaches[i].tries);
		free(reclaimer->reaches[i].states);
	}
	free(reclaimer->reaches);
	free(reclaimer);
}

/* A hole that is punched splits its huge page; hugetlbfs pages come and go whole. */
static bool can_pin(const struct reach *reach)
{
	return !(reach->block->flags & (UFFDB_BLOCK_SHARED | UFFDB_BLOCK_HUGETLB));
}

static bool is_pending(uint8_t state)
{
	return state == WAITING || state == READY;
}

static void set_state(struct uffdb_reclaimer *reclaimer, struct reach *reach, uint64_t unit,
		      enum state state)
{
	reclaimer->stats.pending_blocks += is_pending(state);
	reclaimer->stats.pending_blocks -= is_pending(reach->states[unit]);
	reach->states[unit] = (uint8_t)state;
}

static void make_ready(struct uffdb_reclaimer *reclaimer)
{
	for (size_t i = 0; i < reclaimer->nr; i++) {
		struct reach *reach = &reclaimer->reaches[i];

		for (uint64_t unit = 0; unit < reach->units; unit++)
			if (reach->states[unit] == WAITING)
				reach->states[unit] = READY;
	}
}

static void take_marks(struct uffdb_reclaimer *reclaimer, size_t index, enum state state)
{
	struct reach *reach = &reclaimer->reaches[index];

	for (uint64_t word = 0; word * UFFDB_WORD_BITS < reach->units; word++) {
		uint64_t bits = uffdb_ledger_take_marks(reclaimer->ledger, index, word);

		for (; bits && can_pin(reach); bits &= bits - 1) {
			uint64_t unit = uffdb_lowest_bit(word, bits);

			set_state(reclaimer, reach, unit, state);
			reach->tries[unit] = 0;
		}
	}
}

/* What was quiet from one gathering to the next is ready; what was marked meanwhile waits. */
static void gather_marks(struct uffdb_reclaimer *reclaimer, uint64_t settle_ns)
{
	uint64_t now = uffdb_now_ns(CLOCK_MONOTONIC);

	if (now - reclaimer->taken_ns < settle_ns)
		return;
	reclaimer->taken_ns = now;
	if (reclaimer->stats.pending_blocks)
		make_ready(reclaimer);
	if (uffdb_ledger_begin_marks(reclaimer->ledger))
		for (size_t i = 0; i < reclaimer->nr; i++)
			take_marks(reclaimer, i, settle_ns ? WAITING : READY);
}

static int advise_batch(struct uffdb_reclaimer *reclaimer, const struct batch *batch)
{
	uint64_t began = uffdb_now_ns(CLOCK_MONOTONIC);
	size_t at = 0;
	int error = 0;

	while (at < batch->nr_ranges && !error) {
		int64_t done = uffdb_process_madvise(reclaimer->config.pidfd, batch->ranges + at,
						     batch->nr_ranges - at, COLD);

		if (done == -ESRCH || done == -EPERM || done == -ENOSYS)
			error = (int)done;
		/* One that cannot be advised is passed over, and is seen to be as it was. */
		at += done > 0 ? (size_t)done / UFFDB_PAGE : 1;
		reclaimer->stats.advised_pages += done > 0 ? (uint64_t)done / UFFDB_PAGE : 0;
	}
	reclaimer->stats.calls_ns += uffdb_now_ns(CLOCK_MONOTONIC) - began;
	return error;
}

static void note_outcome(struct uffdb_reclaimer *reclaimer, struct reach *reach, uint64_t unit,
			 uint32_t pinned_before, uint32_t pinned_now)
{
	if (pinned_now < pinned_before)
		reclaimer->stats.freed_pages += pinned_before - pinned_now;
	if (!pinned_now) {
		reclaimer->stats.split_blocks++;
		set_state(reclaimer, reach, unit, SPLIT);
	} else if (++reach->tries[unit] < MAX_TRIES) {
		set_state(reclaimer, reach, unit, WAITING);
	} else {
		reclaimer->stats.failed_blocks++;
		set_state(reclaimer, reach, unit, FAILED);
	}
}

static int split_batch(struct uffdb_reclaimer *reclaimer, struct batch *batch)
{
	struct picture picture;
	int error = advise_batch(reclaimer, batch);

	for (size_t i = 0; !error && i < batch->nr; i++) {
		int ballooned =
			look_at_unit(reclaimer, batch->reaches[i], batch->units[i], &picture);

		if (ballooned < 0)
			error = ballooned;
		else
			note_outcome(reclaimer, batch->reaches[i], batch->units[i],
				     batch->pinned[i], picture.pinned);
	}
	batch->nr = batch->nr_ranges = 0;
	return error;
}

/* Look at one block, and put it to the others if it is to be split. */
static int consider_unit(struct uffdb_reclaimer *reclaimer, struct reach *reach, uint64_t unit,
			 struct batch *batch)
{
	struct picture picture;
	int ballooned = look_at_unit(reclaimer, reach, unit, &picture);

	if (ballooned < 0)
		return ballooned;
	reclaimer->stats.looked_blocks++;
	if (!picture.nr_advise) {
		if (picture.mapped && ++reach->tries[unit] < MAX_TRIES)
			set_state(reclaimer, reach, unit, WAITING);
		else
			set_state(reclaimer, reach, unit,
				  ballooned && !picture.mapped ? SPLIT : UNKNOWN);
		return 0;
	}
	for (uint32_t i = 0; i < picture.nr_advise; i++)
		batch->ranges[batch->nr_ranges++] =
			(struct uffdb_range){picture.advise[i], UFFDB_PAGE};
	batch->reaches[batch->nr] = reach;
	batch->units[batch->nr] = unit;
	batch->pinned[batch->nr] = picture.pinned;
	batch->nr++;
	return 1;
}

int uffdb_reclaimer_pass(struct uffdb_reclaimer *reclaimer, uint32_t max_blocks, uint64_t settle_ns)
{
	uint32_t worked = 0, looked = 0;
	struct batch batch = {0};
	int done = 0;

	gather_marks(reclaimer, settle_ns);
	for (size_t i = 0; i < reclaimer->nr; i++) {
		struct reach *reach = &reclaimer->reaches[i];

		for (uint64_t unit = 0; reclaimer->stats.pending_blocks && unit < reach->units;
		     unit++) {
			if (reach->states[unit] != READY)
				continue;
			/* A look costs a tenth of a split. */
			if (worked == max_blocks || looked++ == 10 * max_blocks)
				goto out;
			done = consider_unit(reclaimer, reach, unit, &batch);
			if (done > 0)
				worked++;
			/* Room for all the huge pages, however small, of one more block. */
			if (done >= 0 && (batch.nr == MAX_BATCH || batch.nr_ranges > 1024 - PAGES))
				done = split_batch(reclaimer, &batch);
			if (done < 0)
				return done;
		}
	}
out:
	done = split_batch(reclaimer, &batch);
	return done < 0 ? done : (int)worked;
}

void uffdb_reclaimer_stats(const struct uffdb_reclaimer *reclaimer,
			   struct uffdb_reclaim_stats *stats)
{
	*stats = reclaimer->stats;
	stats->pending_blocks += uffdb_ledger_is_marked(reclaimer->ledger);
}

/* Count pages of the block that hold memory, and those of them that are ballooned. */
static int count_resident(struct uffdb_reclaimer *reclaimer, const struct picture *picture,
			  uint32_t *all, uint32_t *ballooned)
{
	uint64_t at = picture->range.start, end = at + picture->range.len, next;
	struct uffdb_range found[PAGES];

	*all = *ballooned = 0;
	while (at < end) {
		int nr = uffdb_resident(reclaimer->config.pagemap_fd, at, end, found, PAGES, &next);

		if (nr < 0)
			return nr;
		for (int i = 0; i < nr; i++) {
			uint64_t first = (found[i].start - picture->range.start) / UFFDB_PAGE;
			uint64_t last = first + found[i].len / UFFDB_PAGE;

			*all += (uint32_t)(last - first);
			for (; first < last; first++)
				*ballooned += picture->ballooned[first];
		}
		at = next > at ? next : end;
	}
	return 0;
}

static bool would_collapse(const struct reach *reach, const struct picture *picture, uint32_t there,
			   const struct uffdb_khugepaged *khugepaged)
{
	bool shared = reach->block->flags & UFFDB_BLOCK_SHARED;

	if (reach->block->flags & UFFDB_BLOCK_HUGETLB || picture->pages < PAGES)
		return false;
	if (!(shared ? khugepaged->collapses_shared : khugepaged->collapses_private))
		return false;
	return there && there < PAGES && PAGES - there <= khugepaged->max_ptes_none;
}

static int measure_unit(struct uffdb_reclaimer *reclaimer, struct reach *reach, uint64_t unit,
			const struct uffdb_khugepaged *khugepaged,
			struct uffdb_reclaim_measure *out)
{
	uint32_t ballooned, there, held;
	struct picture picture;
	int error;

	picture.range = range_of_unit(reach, unit);
	picture.pages = (uint32_t)(picture.range.len / UFFDB_PAGE);
	picture.pinned = 0;
	ballooned = find_ballooned(reclaimer, &picture);
	error = count_resident(reclaimer, &picture, &there, &held);
	if (!error && there && can_pin(reach) && reclaimer->stats.sees_folios &&
	    reach->states[unit] != SPLIT) {
		error = read_entries(reclaimer, &picture);
		if (!error)
			find_pinned(reclaimer, &picture);
	}
	if (error)
		return error;
	out->ballooned_pages += ballooned;
	out->resident_pages += held;
	out->pinned_pages += picture.pinned;
	out->pinned_blocks += picture.pinned > 0;
	if (would_collapse(reach, &picture, there, khugepaged)) {
		bool armed = !reclaimer->config.engine ||
			     uffdb_windows_is_armed(reclaimer->config.engine->windows,
						    picture.range.start);

		out->eligible_blocks += armed;
		out->unguarded_blocks += !armed;
	}
	return 0;
}

static struct reach *reach_at(struct uffdb_reclaimer *reclaimer, uint64_t hva)
{
	for (size_t i = 0; i < reclaimer->nr; i++) {
		const struct uffdb_block *block = reclaimer->reaches[i].block;

		if (block->hva <= hva && hva < block->hva + block->size)
			return &reclaimer->reaches[i];
	}
	return NULL;
}

int uffdb_reclaimer_measure(struct uffdb_reclaimer *reclaimer, struct uffdb_range *of,
			    uint32_t max_blocks, const struct uffdb_khugepaged *khugepaged,
			    struct uffdb_reclaim_measure *out)
{
	struct reach *reach = reach_at(reclaimer, of->start);
	uint32_t measured = 0, looked = 0;

	if (!reach)
		return -ENOENT;
	while (of->len && measured < max_blocks && looked++ < MAX_LOOKS) {
		uint64_t unit = of->start / UFFDB_HUGE - reach->first_huge;
		struct uffdb_range range = range_of_unit(reach, unit);

		if (uffdb_ledger_count(reclaimer->ledger, range.start, range.len)) {
			int error = measure_unit(reclaimer, reach, unit, khugepaged, out);

			if (error)
				return error;
			measured++;
		}
		if (of->len < range.len)
			range.len = of->len;
		of->start += range.len;
		of->len -= range.len;
	}
	return 0;
}
