// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>

#include "answer.h"
#include "clock.h"
#include "counters.h"
#include "pagemap.h"
#include "pages.h"
#include "touch.h"
#include "uffdballoon.h"

/* A walk through memory is met halfway: each fill that continues the last is twice as large. */
#define AROUND_FIRST  (4 * UFFDB_PAGE)
#define AROUND_SHARED (16 * UFFDB_PAGE) /* there it commits memory */
#define TRIES	      64

bool uffdb_answer_is_given(const struct uffdb_answerer *answerer, uint64_t hva)
{
	for (size_t i = 0; i < answerer->nr_filled; i++)
		if (hva >= answerer->filled[i].start &&
		    hva < answerer->filled[i].start + answerer->filled[i].len)
			return true;
	return false;
}

void uffdb_answer_note_given(struct uffdb_answerer *answerer, const struct uffdb_range *range)
{
	if (answerer->nr_filled < UFFDB_BATCH)
		answerer->filled[answerer->nr_filled++] = *range;
}

bool uffdb_answer_can_trap_zeros(const struct uffdb_answerer *answerer,
				 const struct uffdb_block *block)
{
	return block->flags & (UFFDB_BLOCK_SHARED | UFFDB_BLOCK_HUGETLB)
		       ? answerer->write_protect_shared
		       : answerer->write_protect;
}

void uffdb_answer_retry(const struct uffdb_answerer *answerer, const struct uffdb_touch *touch)
{
	int error = -EAGAIN;

	for (int i = 0; i < TRIES && error; i++)
		error = uffdb_uffd_wake(answerer->uffd, touch->hva, touch->size);
}

static void count_failure(struct uffdb_answerer *answerer, int error)
{
	switch (error) {
	case -EEXIST:
		uffdb_count(&answerer->counters->exists, 1);
		break;
	case -EAGAIN:
	case -EFAULT: /* of CONTINUE: the page has left the file */
		uffdb_count(&answerer->counters->retried, 1);
		break;
	case -ENOENT:
	case -ESRCH:
		uffdb_count(&answerer->counters->gone, 1);
		break;
	default:
		uffdb_count_failed(answerer->counters, error);
		break;
	}
}

/* Count how an answer came out, and see that nobody is left asleep. */
static bool answered(struct uffdb_answerer *answerer, const struct uffdb_touch *touch, int error)
{
	if (!error)
		return true;
	count_failure(answerer, error);
	uffdb_answer_retry(answerer, touch);
	return false;
}

/*
 * Why a huge page could not be filled. Where the pool is empty COPY says ENOMEM, or EEXIST when
 * there is a page table for it (Linux 6.18, hugetlb_mfill_atomic_pte()). CONTINUE knows better: it
 * maps a page that another process has filled meanwhile, and fails where the file has none.
 */
static int why_not_filled(const struct uffdb_answerer *answerer, const struct uffdb_touch *touch,
			  uint32_t flags)
{
	uint64_t end = touch->hva + touch->size;
	int error;

	if (answerer->pagemap_fd < 0 || uffdb_is_populated(answerer->pagemap_fd, touch->hva, end))
		return -EEXIST;
	error = uffdb_uffd_continue(answerer->uffd, touch->hva, touch->size, flags);
	if (!error)
		return 0;
	return error == -EFAULT ? -ENOMEM : -EEXIST;
}

/*
 * Fill an absent page with zeros. On anonymous memory the shared zero page is
 * faster than a copy even when a write follows and has to copy it.
 */
static int fill_page(struct uffdb_answerer *answerer, const struct uffdb_touch *touch,
		     uint32_t flags)
{
	int uffd = answerer->uffd, error = -EAGAIN;

	for (int i = 0; i < TRIES && error == -EAGAIN; i++) {
		/* ZEROPAGE knows no hugetlbfs, and no way to protect in the same step. */
		if (uffdb_is_huge(touch) || flags & UFFDB_WRITEPROTECT)
			error = uffdb_uffd_copy(uffd, touch->hva, answerer->zeros, touch->size,
						flags);
		else
			error = uffdb_uffd_zeropage(uffd, touch->hva, touch->size, flags);
	}
	if (error == -EEXIST && uffdb_is_huge(touch))
		return why_not_filled(answerer, touch, flags);
	return error;
}

/* Map what another process has put into the file: its contents are the guest's. */
static int map_filled(const struct uffdb_answerer *answerer, const struct uffdb_touch *touch)
{
	int error = -EAGAIN;

	for (int i = 0; i < TRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_continue(answerer->uffd, touch->hva, touch->size, 0);
	return error;
}

int uffdb_answer_fill_asleep(struct uffdb_answerer *answerer, const struct uffdb_touch *touch)
{
	int error = fill_page(answerer, touch, UFFDB_DONTWAKE);

	if (error && error != -ENOMEM)
		count_failure(answerer, error);
	return error == -ENOMEM ? error : 0;
}

void uffdb_answer_wake(struct uffdb_answerer *answerer, const struct uffdb_touch *touch)
{
	answerer->last_fill_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	uffdb_answer_retry(answerer, touch);
}

void uffdb_answer_unprotect(struct uffdb_answerer *answerer, const struct uffdb_range *range)
{
	int error = -EAGAIN;

	for (int i = 0; i < TRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_writeprotect(answerer->uffd, range->start, range->len, false);
	if (error)
		count_failure(answerer, error);
}

int uffdb_answer_page(struct uffdb_answerer *answerer, const struct uffdb_touch *touch)
{
	int error;

	if (touch->minor)
		error = map_filled(answerer, touch);
	else if (touch->protected)
		error = uffdb_uffd_writeprotect(answerer->uffd, touch->hva, touch->size, false);
	else
		error = fill_page(answerer, touch, 0);
	if (error == -ENOMEM)
		return error;
	answerer->last_fill_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	answered(answerer, touch, error);
	return 0;
}

/*
 * How far from a touch to fill: within its 2 MiB block, which is the least that
 * is armed, and up to the next ballooned page, never over it.
 */
static uint64_t around_len(struct uffdb_answerer *answerer, const struct uffdb_touch *touch)
{
	uint64_t limit = answerer->around_bytes, end, block_end;
	struct uffdb_range ballooned;

	if (touch->block->flags & UFFDB_BLOCK_SHARED && limit > AROUND_SHARED)
		limit = AROUND_SHARED;
	if (touch->hva == answerer->around_next && answerer->around_len * 2 <= limit)
		answerer->around_len *= 2;
	else if (touch->hva != answerer->around_next)
		answerer->around_len = AROUND_FIRST;
	if (answerer->around_len < limit)
		limit = answerer->around_len;
	end = touch->hva + limit;
	block_end = (touch->hva / UFFDB_HUGE + 1) * UFFDB_HUGE;
	if (end > block_end)
		end = block_end;
	block_end = touch->block->hva + touch->block->size;
	if (end > block_end)
		end = block_end;
	if (uffdb_ledger_next(answerer->ledger, touch->hva, end, &ballooned) > 0)
		end = ballooned.start;
	return end > touch->hva + touch->size ? end - touch->hva : touch->size;
}

uint64_t uffdb_answer_around(struct uffdb_answerer *answerer, const struct uffdb_touch *touch)
{
	int64_t done;
	uint64_t len;

	if (touch->protected || touch->minor || uffdb_is_huge(touch) ||
	    answerer->around_bytes <= UFFDB_PAGE)
		return 0;
	len = around_len(answerer, touch);
	done = uffdb_fill_zeros(answerer->uffd, touch->hva, len);
	answerer->last_fill_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	if (done < (int64_t)touch->size)
		return 0;
	answerer->around_next = touch->hva + (uint64_t)done;
	answerer->filled[answerer->nr_filled++] = (struct uffdb_range){touch->hva, (uint64_t)done};
	uffdb_count(&answerer->counters->around_pages, ((uint64_t)done - touch->size) / UFFDB_PAGE);
	return (uint64_t)done;
}

/*
 * Anonymous memory gets the shared zero page, which costs nothing, protected in
 * a second step (the other order does not work: EEXIST). A write by another
 * vCPU between the two steps finds the page unprotected and copies it; it is
 * found afterwards, because the page then is memory of its own. Where the second
 * step fails (EAGAIN while an event waits to be read) the page cannot be trapped
 * any more, and is the guest's. Shared memory
 * and hugetlbfs have no zero page to share: they get a page of zeros that is
 * protected in the same step, and dropped again after a while: drop.h.
 */
enum uffdb_zeroed uffdb_answer_zeros(struct uffdb_answerer *answerer,
				     const struct uffdb_touch *touch)
{
	uint32_t flags =
		UFFDB_DONTWAKE | (uffdb_is_zero_shared(touch->block) ? 0 : UFFDB_WRITEPROTECT);
	int error = fill_page(answerer, touch, flags);

	if (error == -ENOMEM)
		return UFFDB_NO_PAGE;
	if (!answered(answerer, touch, error))
		return UFFDB_ZEROED_BY_ANOTHER;
	error = -EAGAIN;
	if (!uffdb_is_zero_shared(touch->block))
		return UFFDB_ZEROED;
	for (int i = 0; i < TRIES && error; i++)
		error = uffdb_uffd_writeprotect(answerer->uffd, touch->hva, touch->size, true);
	if (error) {
		count_failure(answerer, error);
		return UFFDB_UNPROTECTED;
	}
	if (answerer->pagemap_fd >= 0 && uffdb_holds_memory(answerer->pagemap_fd, touch->hva) > 0)
		return UFFDB_WRITTEN;
	return UFFDB_ZEROED;
}

int uffdb_answer_poison(const struct uffdb_answerer *answerer, const struct uffdb_touch *touch)
{
	int error = -EAGAIN;

	for (int i = 0; i < TRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_poison(answerer->uffd, touch->hva, touch->size, 0);
	return error;
}
