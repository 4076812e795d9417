// SPDX-License-Identifier: GPL-2.0-or-later
/* How a fault is answered: one ioctl, and nobody left asleep whatever comes of it. */
#include <errno.h>

#include "clock.h"
#include "counter.h"
#include "engine.h"
#include "pagemap.h"
#include "pages.h"
#include "uffdballoon.h"
#include "windows.h"

/* A walk through memory is met halfway: each fill that continues the last is twice as large. */
#define AROUND_FIRST  (4 * UFFDB_PAGE)
#define AROUND_SHARED (16 * UFFDB_PAGE) /* there it commits memory */

static bool is_special(const struct touch *touch)
{
	return touch->block->flags & (UFFDB_BLOCK_SHARED | UFFDB_BLOCK_HUGETLB);
}

/*
 * Let the thread try again: it faults anew if it must. Right after every answer
 * that could not be given, since a thread that nobody wakes waits for ever.
 */
void uffdb_let_retry(struct uffdb_engine *engine, const struct touch *touch)
{
	int error = -EAGAIN;

	for (int i = 0; i < UFFDB_RETRIES && error; i++)
		error = uffdb_uffd_wake(engine->config.uffd, touch->hva, touch->size);
}

static void count_failure(struct uffdb_engine *engine, int error)
{
	switch (error) {
	case -EEXIST:
		uffdb_count(&engine->exists, 1);
		break;
	case -EAGAIN:
	case -EFAULT: /* of CONTINUE: the page has left the file */
		uffdb_count(&engine->retried, 1);
		break;
	case -ENOENT:
	case -ESRCH:
		uffdb_count(&engine->gone, 1);
		break;
	default:
		uffdb_count(&engine->failed, 1);
		break;
	}
}

/* Count how an answer came out, and see that nobody is left asleep. */
static bool answered(struct uffdb_engine *engine, const struct touch *touch, int error)
{
	if (!error)
		return true;
	count_failure(engine, error);
	uffdb_let_retry(engine, touch);
	return false;
}

/*
 * Why a huge page could not be filled. Where the pool is empty COPY says ENOMEM, or EEXIST when
 * there is a page table for it (Linux 6.18, hugetlb_mfill_atomic_pte()). CONTINUE knows better: it
 * maps a page that another process has filled meanwhile, and fails where the file has none.
 */
static int why_not_filled(const struct uffdb_engine *engine, const struct touch *touch,
			  uint32_t flags)
{
	uint64_t end = touch->hva + touch->size;
	int error;

	if (engine->config.pagemap_fd < 0 ||
	    uffdb_is_populated(engine->config.pagemap_fd, touch->hva, end))
		return -EEXIST;
	error = uffdb_uffd_continue(engine->config.uffd, touch->hva, touch->size, flags);
	if (!error)
		return 0;
	return error == -EFAULT ? -ENOMEM : -EEXIST;
}

/*
 * Fill an absent page with zeros. On anonymous memory the shared zero page is
 * faster than a copy even when a write follows and has to copy it.
 */
static int fill(struct uffdb_engine *engine, const struct touch *touch, uint32_t flags)
{
	int uffd = engine->config.uffd, error = -EAGAIN;

	for (int i = 0; i < UFFDB_RETRIES && error == -EAGAIN; i++) {
		/* ZEROPAGE knows no hugetlbfs, and no way to protect in the same step. */
		if (touch->block->flags & UFFDB_BLOCK_HUGETLB || flags & UFFDB_WRITEPROTECT)
			error = uffdb_uffd_copy(uffd, touch->hva, engine->zeros, touch->size,
						flags);
		else
			error = uffdb_uffd_zeropage(uffd, touch->hva, touch->size, flags);
	}
	if (error == -EEXIST && touch->block->flags & UFFDB_BLOCK_HUGETLB)
		return why_not_filled(engine, touch, flags);
	return error;
}

/* Map what another process has put into the file: its contents are the guest's. */
static int map_filled(const struct uffdb_engine *engine, const struct touch *touch)
{
	int error = -EAGAIN;

	for (int i = 0; i < UFFDB_RETRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_continue(engine->config.uffd, touch->hva, touch->size, 0);
	return error;
}

int uffdb_fill_scarce(struct uffdb_engine *engine, const struct touch *touch)
{
	int error = fill(engine, touch, UFFDB_DONTWAKE);

	if (error && error != -ENOMEM)
		count_failure(engine, error);
	return error == -ENOMEM ? error : 0;
}

void uffdb_wake_filled(struct uffdb_engine *engine, const struct touch *touch)
{
	if (engine->nr_parked)
		uffdb_unpark_range(engine, touch->hva, touch->size, false);
	engine->last_fill_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	uffdb_let_retry(engine, touch);
}

void uffdb_give_page(struct uffdb_engine *engine, const struct touch *touch)
{
	int error;

	if (touch->minor)
		error = map_filled(engine, touch);
	else if (touch->protected)
		error = uffdb_uffd_writeprotect(engine->config.uffd, touch->hva, touch->size,
						false);
	else
		error = fill(engine, touch, 0);
	if (error == -ENOMEM) {
		uffdb_hold_for_memory(engine, touch, UFFDB_LACKS_PAGE);
		return;
	}
	/* Whoever else was held at this page is let go by the same answer. */
	if (engine->nr_parked)
		uffdb_unpark_range(engine, touch->hva, touch->size, false);
	engine->last_fill_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	answered(engine, touch, error);
	/* Its window was kept for as long as the page was absent: windows.c. */
	if (touch->block->flags & UFFDB_BLOCK_HUGETLB)
		uffdb_windows_note_change(engine->windows, touch->hva);
}

/*
 * How far from a touch to fill: within its 2 MiB block, which is the least that
 * is armed, and up to the next ballooned page, never over it.
 */
static uint64_t around_len(struct uffdb_engine *engine, const struct touch *touch)
{
	uint64_t limit = engine->config.around_bytes, end, block_end;
	struct uffdb_range ballooned;

	if (touch->block->flags & UFFDB_BLOCK_SHARED && limit > AROUND_SHARED)
		limit = AROUND_SHARED;
	if (touch->hva == engine->around_next && engine->around_len * 2 <= limit)
		engine->around_len *= 2;
	else if (touch->hva != engine->around_next)
		engine->around_len = AROUND_FIRST;
	if (engine->around_len < limit)
		limit = engine->around_len;
	end = touch->hva + limit;
	block_end = (touch->hva / UFFDB_HUGE + 1) * UFFDB_HUGE;
	if (end > block_end)
		end = block_end;
	block_end = touch->block->hva + touch->block->size;
	if (end > block_end)
		end = block_end;
	if (uffdb_ledger_next(engine->ledger, touch->hva, end, &ballooned) > 0)
		end = ballooned.start;
	return end > touch->hva + touch->size ? end - touch->hva : touch->size;
}

/*
 * Answer a touch of a page that is the guest's, and of the absent ones that
 * follow it. One call; it ends at the first page that is there.
 */
void uffdb_give_around(struct uffdb_engine *engine, const struct touch *touch)
{
	int64_t done;
	uint64_t len;

	if (touch->protected || touch->minor || touch->block->flags & UFFDB_BLOCK_HUGETLB ||
	    engine->config.around_bytes <= UFFDB_PAGE) {
		uffdb_give_page(engine, touch);
		return;
	}
	len = around_len(engine, touch);
	done = uffdb_fill_zeros(engine->config.uffd, touch->hva, len);
	engine->last_fill_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	if (done < (int64_t)touch->size) {
		uffdb_give_page(engine, touch);
		return;
	}
	if (engine->nr_parked)
		uffdb_unpark_range(engine, touch->hva, (uint64_t)done, false);
	engine->around_next = touch->hva + (uint64_t)done;
	engine->filled[engine->nr_filled++] = (struct uffdb_range){touch->hva, (uint64_t)done};
	uffdb_count(&engine->around_pages, ((uint64_t)done - touch->size) / UFFDB_PAGE);
}

/*
 * Give a reader zeros and trap the write that may follow; the reader is still
 * asleep when this returns UFFDB_ZEROED or UFFDB_WRITTEN.
 *
 * Anonymous memory gets the shared zero page, which costs nothing, protected in
 * a second step (the other order does not work: EEXIST). A write by another
 * vCPU between the two steps finds the page unprotected and copies it; it is
 * found afterwards, because the page then is memory of its own. Where the second
 * step fails (EAGAIN while an event waits to be read) the page cannot be trapped
 * any more, and is the guest's. Shared memory
 * and hugetlbfs have no zero page to share: they get a page of zeros that is
 * protected in the same step, and that the balloon loses until it is zapped.
 */
enum uffdb_zeroed uffdb_arm_zeros(struct uffdb_engine *engine, const struct touch *touch)
{
	const struct uffdb_engine_config *config = &engine->config;
	uint32_t flags = UFFDB_DONTWAKE | (is_special(touch) ? UFFDB_WRITEPROTECT : 0);
	int error = fill(engine, touch, flags);

	if (error == -ENOMEM)
		return UFFDB_NO_PAGE;
	if (!answered(engine, touch, error))
		return UFFDB_ZEROED_BY_ANOTHER;
	error = -EAGAIN;
	if (is_special(touch))
		return UFFDB_ZEROED;
	for (int i = 0; i < UFFDB_RETRIES && error; i++)
		error = uffdb_uffd_writeprotect(config->uffd, touch->hva, touch->size, true);
	if (error) {
		count_failure(engine, error);
		return UFFDB_UNPROTECTED;
	}
	if (config->pagemap_fd >= 0 && uffdb_holds_memory(config->pagemap_fd, touch->hva) > 0)
		return UFFDB_WRITTEN;
	return UFFDB_ZEROED;
}

bool uffdb_is_zero_readable(const struct uffdb_engine *engine, const struct touch *touch)
{
	return !touch->write && !touch->protected && !touch->minor &&
	       (is_special(touch) ? engine->config.write_protect_shared
				  : engine->config.write_protect);
}

/* Poison an absent page; false when it is there, or this kernel cannot. */
bool uffdb_poison_page(struct uffdb_engine *engine, const struct touch *touch)
{
	int error = -EAGAIN;

	for (int i = 0; i < UFFDB_RETRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_poison(engine->config.uffd, touch->hva, touch->size, 0);
	return !error;
}
