// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "counters.h"
#include "drop.h"
#include "engine.h"
#include "ledger.h"
#include "lent.h"
#include "pagemap.h"
#include "pages.h"
#include "touch.h"
#include "uffdballoon.h"
#include "zapqueue.h"

#define MOST_AT_ONCE (16 * UFFDB_PAGE) /* that are looked at, and dropped, in one go */

int uffdb_drop_init(struct uffdb_engine *engine)
{
	size_t nr = engine->config.nr_memory_files;

	uffdb_lent_init(&engine->lent);
	if (!nr)
		return 0;
	engine->memory_files = calloc(nr, sizeof(*engine->memory_files));
	if (!engine->memory_files)
		return -ENOMEM;
	memcpy(engine->memory_files, engine->config.memory_files,
	       nr * sizeof(*engine->memory_files));
	return 0;
}

void uffdb_drop_release(struct uffdb_engine *engine)
{
	free(engine->memory_files);
}

static const struct uffdb_memory_file *file_at(const struct uffdb_engine *engine, uint64_t hva)
{
	for (size_t i = 0; engine->memory_files && i < engine->config.nr_memory_files; i++) {
		const struct uffdb_memory_file *file = &engine->memory_files[i];

		if (hva >= file->hva && hva < file->hva + file->len)
			return file;
	}
	return NULL;
}

/* Private huge pages are in no file: the target itself has to zap them. */
static bool is_for_target(const struct uffdb_engine *engine, uint64_t hva)
{
	return !uffdb_is_in_file(uffdb_ledger_block(engine->ledger, hva));
}

void uffdb_lend(struct uffdb_engine *engine, uint64_t hva, uint64_t size, bool told)
{
	uint64_t now_ns, epoch = told ? uffdb_ledger_epoch(engine->ledger) : 0;

	if (engine->config.pagemap_fd < 0 || !(is_for_target(engine, hva) || file_at(engine, hva)))
		return;
	now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	while (!uffdb_lent_add(&engine->lent, hva, size, now_ns, epoch))
		uffdb_drop_lent(engine);
}

bool uffdb_was_told(const struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	return uffdb_is_zero_readable(touch) && engine->ladder.nr_rungs &&
	       engine->ladder.rungs[0].kind == UFFDB_RUNG_ZERO_READ &&
	       uffdb_lent_was_told(&engine->lent, touch->hva, touch->size,
				   uffdb_ledger_epoch(engine->ledger));
}

static bool is_all_zeros(const struct uffdb_memory_file *file, const struct uffdb_range *range)
{
	static const char zeros[MOST_AT_ONCE];
	uint64_t from = file->offset + range->start - file->hva;
	char bytes[MOST_AT_ONCE];

	for (uint64_t done = 0; done < range->len;) {
		size_t want = range->len - done < sizeof(bytes) ? range->len - done : sizeof(bytes);
		ssize_t got = pread(file->fd, bytes, want, (off_t)(from + done));

		if (got <= 0 || memcmp(bytes, zeros, (size_t)got) != 0)
			return false;
		done += (uint64_t)got;
	}
	return true;
}

/* The look at the contents comes last: another process may write to them at any time. */
static bool is_unwritten(const struct uffdb_engine *engine, const struct uffdb_memory_file *file,
			 const struct uffdb_range *range, uint64_t page)
{
	for (uint64_t at = range->start; at < range->start + range->len; at += page)
		if (uffdb_ledger_test(engine->ledger, at) <= 0 ||
		    !uffdb_is_protected(engine->config.pagemap_fd, at))
			return false;
	return is_all_zeros(file, range);
}

static int punch_range(const struct uffdb_memory_file *file, const struct uffdb_range *range)
{
	return uffdb_punch_hole(file->fd, file->offset + range->start - file->hva, range->len);
}

bool uffdb_can_drop(const struct uffdb_engine *engine, uint64_t hva)
{
	return file_at(engine, hva);
}

int uffdb_drop_block(const struct uffdb_engine *engine, const struct uffdb_range *block)
{
	return punch_range(file_at(engine, block->start), block);
}

/*
 * A write that waits at the protection is woken when the mark is taken off that the protection has
 * left in the page table (mm/memory.c, zap_install_uffd_wp_if_needed()). It faults anew, at a
 * missing page, and is judged by that; what was read of it before is stale by then (judge.c).
 */
static void punch_out(struct uffdb_engine *engine, const struct uffdb_memory_file *file,
		      const struct uffdb_range *range)
{
	int error = punch_range(file, range);

	if (error)
		uffdb_count_failed(&engine->counters, error);
	else
		uffdb_answer_unprotect(&engine->answerer, range);
}

/* It is looked at there. Where nobody takes what is queued, and no room is left, it stays. */
static void have_zapped(struct uffdb_engine *engine, const struct uffdb_range *page)
{
	const uint64_t one = 1;

	uffdb_zap_again(engine, page->start, page->len);
	/* It fails only when it is readable already. */
	(void)!write(engine->news_fd, &one, sizeof(one));
}

static void drop_range(struct uffdb_engine *engine, const struct uffdb_range *range, uint64_t page)
{
	const struct uffdb_memory_file *file = file_at(engine, range->start);

	if (!file) {
		have_zapped(engine, range);
		return;
	}
	if (is_unwritten(engine, file, range, page)) {
		punch_out(engine, file, range);
		return;
	}
	if (range->len == page)
		return;
	for (uint64_t at = range->start; at < range->start + range->len; at += page) {
		const struct uffdb_range one = {at, page};

		if (is_unwritten(engine, file, &one, page))
			punch_out(engine, file, &one);
	}
}

static bool is_next(const struct uffdb_engine *engine, const struct uffdb_range *range,
		    uint64_t hva, uint64_t size)
{
	return range->len && range->start + range->len == hva &&
	       range->len + size <= MOST_AT_ONCE &&
	       file_at(engine, range->start) == file_at(engine, hva);
}

void uffdb_drop_lent(struct uffdb_engine *engine)
{
	uint64_t now_ns, hva, size, page = 0;
	struct uffdb_range range = {0};

	if (!engine->lent.nr)
		return;
	now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	while (uffdb_lent_take(&engine->lent, now_ns, &hva, &size)) {
		if (is_next(engine, &range, hva, size)) {
			range.len += size;
			continue;
		}
		if (range.len)
			drop_range(engine, &range, page);
		range = (struct uffdb_range){hva, size};
		page = size;
	}
	if (range.len)
		drop_range(engine, &range, page);
}
