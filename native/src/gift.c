// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A grant is as large as the gift, where that is a whole block, as free page reporting gives it up,
 * or a driver that deflates nothing under `cap` (which traps all there: slack.c). One that is taken
 * back a page at a time would never be a huge page again. No answer of userfaultfd's fills one at
 * once, so the block is taken out of the ledger and out of its window, and the kernel's own fault
 * path serves it: with a huge page, where the host gives those.
 *
 * Windows are the controlling side's. The loop never waits for it, for it may wait for the loop: a
 * touch that finds it busy is let fault again, a few times, and then has its page alone while its
 * block is the guest's all the same.
 */
#include <pthread.h>
#include <sched.h>

#include "answer.h"
#include "contract.h"
#include "counters.h"
#include "events.h"
#include "gift.h"
#include "ledger.h"
#include "observe.h"
#include "pages.h"
#include "settle.h"
#include "slack.h"
#include "touch.h"
#include "uffdballoon.h"
#include "windows.h"

#define TRIES 64 /* to find the controlling side elsewhere, of one block */

/* Was a block reported free, and nothing of it taken back? */
static bool is_whole_report(const struct uffdb_engine *engine, const struct uffdb_range *gift)
{
	return engine->observer && uffdb_ledger_pages(engine->observer->reported) &&
	       uffdb_is_reported(engine, gift->start, gift->len);
}

/* As far above the floor it would have gone slack, whole. */
static bool is_whole(const struct uffdb_engine *engine, const struct uffdb_touch *touch,
		     const struct uffdb_range *gift)
{
	return uffdb_slack_is_for(engine, touch->block) &&
	       uffdb_ledger_count(engine->ledger, gift->start, gift->len) == gift->len / UFFDB_PAGE;
}

/* Is the block around a touch to be taken back as one? */
static bool is_gift(const struct uffdb_engine *engine, const struct uffdb_touch *touch,
		    struct uffdb_range *gift)
{
	const struct uffdb_block *block = touch->block;

	if (uffdb_is_huge(touch))
		return false;
	*gift = (struct uffdb_range){touch->hva & ~(UFFDB_HUGE - 1), UFFDB_HUGE};
	return gift->start >= block->hva && gift->start + gift->len <= block->hva + block->size &&
	       (is_whole_report(engine, gift) || is_whole(engine, touch, gift));
}

static bool is_allowed(const struct uffdb_engine *engine, const struct uffdb_judged *judged)
{
	struct uffdb_judged whole = *judged;

	whole.touched_bytes = UFFDB_HUGE;
	return uffdb_contract_allows(&engine->contract, &whole);
}

/* Is it worth while to let the thread fault again? Nobody does who was late. */
static bool may_try_again(struct uffdb_engine *engine, const struct uffdb_touch *touch,
			  const struct uffdb_range *gift)
{
	if (touch->late)
		return false;
	if (engine->awaited_hva != gift->start)
		engine->awaited = 0;
	engine->awaited_hva = gift->start;
	return engine->awaited++ < TRIES;
}

static void take_gift(struct uffdb_engine *engine, const struct uffdb_touch *touch,
		      const struct uffdb_range *gift)
{
	struct uffdb_touch whole = *touch;

	whole.hva = gift->start;
	whole.size = gift->len;
	if (is_whole_report(engine, gift))
		uffdb_count(&engine->observer->regained, gift->len);
	uffdb_ledger_clear(engine->ledger, gift->start, gift->len);
	uffdb_forget_reports(engine, gift->start, gift->len);
	uffdb_count(&engine->counters.granted, 1);
	uffdb_events_post(&engine->events, &engine->counters, &whole, UFFDB_GRANTED,
			  UFFDB_ACTION_GRANT);
}

bool uffdb_grant_as_given(struct uffdb_engine *engine, const struct uffdb_touch *touch,
			  const struct uffdb_judged *judged)
{
	struct uffdb_range gift;
	bool is_free;

	if (!is_gift(engine, touch, &gift) || !is_allowed(engine, judged))
		return false;
	if (pthread_mutex_trylock(&engine->control)) {
		if (may_try_again(engine, touch, &gift)) {
			sched_yield(); /* to whom it is that we are here for, or who is in our way
					*/
			uffdb_answer_retry(&engine->answerer, touch);
			return true;
		}
		take_gift(engine, touch, &gift);
		is_free = false;
	} else {
		take_gift(engine, touch, &gift);
		is_free = !uffdb_windows_trim(engine->windows, gift.start, gift.len) &&
			  !uffdb_windows_is_armed(engine->windows, gift.start);
		pthread_mutex_unlock(&engine->control);
	}
	if (is_free) {
		/* To let go of a window wakes who waits in it: others that were read as well. */
		uffdb_answer_note_given(&engine->answerer, &gift);
		uffdb_let_go(engine, gift.start, gift.len);
		return true;
	}
	uffdb_windows_note_change(engine->windows, gift.start);
	uffdb_give_around(engine, touch);
	uffdb_let_go(engine, gift.start, gift.len);
	return true;
}
