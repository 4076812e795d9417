// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The controlling side of observing: windows for what the guest has given up, and
 * a look at what happened before they were there.
 *
 * A page that holds memory when its window is new may be one whose discard is
 * under way, which is traced before it is done. So it is suspected only, and
 * judged when it still holds memory LOOK_AGAIN_NS later and was not discarded
 * again meanwhile.
 *
 * Locked memory is not discarded (mm/madvise.c, can_madv_lru_vma()): of a target that has locked
 * its RAM (mlockall(), by -overcommit mem-lock=on), what holds memory was refused.
 */
#include <errno.h>
#include <stdatomic.h>

#include "again.h"
#include "clock.h"
#include "counters.h"
#include "engine.h"
#include "follow.h"
#include "gather.h"
#include "judge.h"
#include "ledger.h"
#include "mailbox.h"
#include "observe.h"
#include "pagemap.h"
#include "pages.h"
#include "process.h"
#include "slack.h"
#include "uffdballoon.h"
#include "windows.h"
#include "zapqueue.h"

#define LOOK_AGAIN_NS 200000000ull
#define RANGES	      256

int uffdb_in_ballooned(struct uffdb_engine *engine, const struct uffdb_range *in,
		       uffdb_find_ranges *find, uffdb_each_range *each, void *argument)
{
	uint64_t at = in->start, end = in->start + in->len;
	struct uffdb_range found[RANGES], run;

	while (at < end && uffdb_ledger_next(engine->ledger, at, end, &run) > 0) {
		uint64_t run_end = run.start + run.len;

		for (at = run.start; at < run_end;) {
			uint64_t next = run_end;
			int nr = find(engine->config.pagemap_fd, at, run_end, found, RANGES, &next);

			if (nr < 0)
				return nr;
			for (int i = 0; i < nr; i++)
				each(engine, &found[i], argument);
			at = next > at ? next : run_end;
		}
	}
	return 0;
}

static void note_refusal(struct uffdb_engine *engine, const struct uffdb_range *range,
			 void *argument)
{
	(void)argument;
	uffdb_observe_refusal(engine, range);
}

static void take_refused(struct uffdb_engine *engine, void *argument)
{
	uffdb_in_ballooned(engine, argument, uffdb_resident, note_refusal, NULL);
}

static bool is_locked(struct uffdb_engine *engine, uint64_t hva)
{
	const struct uffdb_block *block = uffdb_ledger_block(engine->ledger, hva);

	if (engine->observer->locked_bytes < 0)
		engine->observer->locked_bytes = uffdb_locked_bytes(engine->config.pid);
	return engine->observer->locked_bytes >= (int64_t)block->size;
}

/* From here on a write to it is trapped, and what it holds stays what it is. */
static void suspect_all(struct uffdb_engine *engine, const struct uffdb_range *range)
{
	struct uffdb_range refused = *range;

	if (is_locked(engine, range->start)) {
		uffdb_call_on_loop(engine, take_refused, &refused);
		/* The next are refused as well, and no touch of them would be trapped. */
		uffdb_windows_look_at_armed(engine->windows);
		return;
	}
	uffdb_uffd_writeprotect(engine->config.uffd, range->start, range->len, true);
	uffdb_ledger_set(engine->observer->suspected, range->start, range->len);
	engine->observer->suspects = true;
}

/* A huge page that is not punched yet has not been given up by anybody but the driver. */
static void suspect(struct uffdb_engine *engine, const struct uffdb_range *range, void *argument)
{
	uint64_t end = range->start + range->len, next;

	(void)argument;
	if (!engine->observer->pieces) {
		suspect_all(engine, range);
		return;
	}
	for (uint64_t at = range->start; at < end; at = next) {
		next = (at / UFFDB_HUGE + 1) * UFFDB_HUGE;
		next = next < end ? next : end;
		if (!uffdb_is_to_be_punched(engine, at))
			suspect_all(engine, &(const struct uffdb_range){at, next - at});
	}
}

/* A read before the window was there: zeros were right, but what follows must be trapped. */
static void protect_late_read(struct uffdb_engine *engine, const struct uffdb_range *range,
			      void *argument)
{
	(void)argument;
	if (!uffdb_uffd_writeprotect(engine->config.uffd, range->start, range->len, true))
		uffdb_count(&engine->observer->late_reads, range->len / UFFDB_PAGE);
}

static int look_at_range(void *argument, const struct uffdb_range *range)
{
	struct uffdb_engine *engine = argument;
	int error = uffdb_in_ballooned(engine, range, uffdb_resident, suspect, NULL);

	if (!error && engine->config.write_protect)
		error = uffdb_in_ballooned(engine, range, uffdb_loose_zero_pages, protect_late_read,
					   NULL);
	/* An older kernel cannot tell zero pages; they hold memory for it, and are suspected. */
	return error == -ENOTTY || error == -EINVAL ? 0 : error;
}

struct late {
	struct uffdb_range page;
	bool unused; /* it holds zeros, and cannot have been written to since we looked */
	bool absent;
	bool later;
};

/*
 * Shared memory that is discarded while it is write-protected leaves a mark in the page table,
 * which is shown as memory that is swapped out (mm/memory.c, zap_install_uffd_wp_if_needed()).
 * The mark is taken off: what was suspected has been given up. The loop alone fills the page, and
 * is here; what it has filled since is looked at again. A page that the host has swapped out of its
 * file looks the same, where minor faults are trapped: so is the next touch of it.
 */
static bool is_but_a_mark(struct uffdb_engine *engine, const struct uffdb_range *page)
{
	if (uffdb_contents(engine, page->start, page->len) != UFFDB_NOT_TO_BE_READ ||
	    uffdb_is_present(engine->config.pagemap_fd, page->start))
		return false;
	uffdb_uffd_writeprotect(engine->config.uffd, page->start, page->len, false);
	return true;
}

static void judge_late(struct uffdb_engine *engine, void *argument)
{
	struct uffdb_observer *observer = engine->observer;
	struct late *late = argument;
	const struct uffdb_range *page = &late->page;

	if (uffdb_ledger_clear(observer->suspected, page->start, page->len) <= 0 ||
	    uffdb_ledger_test(engine->ledger, page->start) <= 0 ||
	    uffdb_holds_memory(engine->config.pagemap_fd, page->start) <= 0)
		return;
	if (late->unused || late->absent) {
		late->later = late->absent ? !is_but_a_mark(engine, page)
					   : !uffdb_zap_again(engine, page->start, page->len);
		if (late->later)
			uffdb_ledger_set(observer->suspected, page->start, page->len);
		return;
	}
	uffdb_count(&observer->late, 1);
	uffdb_judge_late(engine, page->start, page->len);
}

/* What was reported free as a block of 2 MiB, and is all there again, is taken back as one. */
static uint64_t size_to_judge(const struct uffdb_engine *engine, const struct uffdb_block *block,
			      uint64_t at, uint64_t end)
{
	if (at % UFFDB_HUGE || end - at < UFFDB_HUGE ||
	    !uffdb_is_reported(engine, at, UFFDB_HUGE) ||
	    !uffdb_is_populated(engine->config.pagemap_fd, at, at + UFFDB_HUGE))
		return uffdb_block_page(block);
	return UFFDB_HUGE;
}

static void judge_range(struct uffdb_engine *engine, const struct uffdb_range *range)
{
	const struct uffdb_block *block = uffdb_ledger_block(engine->ledger, range->start);
	uint64_t end = range->start + range->len, size;

	for (uint64_t at = range->start; at < end; at += size) {
		struct late late = {.page = {at, size = size_to_judge(engine, block, at, end)}};
		enum uffdb_contents contents = UFFDB_WRITTEN_TO;

		/* What is not may be out of its window by now, and a look would fill it. */
		if (uffdb_is_protected(engine->config.pagemap_fd, at))
			contents = uffdb_contents(engine, at, size);
		late.unused = contents == UFFDB_ALL_ZEROS;
		late.absent = contents == UFFDB_NOT_TO_BE_READ;
		uffdb_call_on_loop(engine, judge_late, &late);
		if (late.later)
			engine->observer->suspects = true;
	}
}

static void look_again(struct uffdb_engine *engine)
{
	struct uffdb_observer *observer = engine->observer;
	const struct uffdb_block *blocks;
	struct uffdb_range run;
	size_t nr;

	observer->suspects = false;
	blocks = uffdb_ledger_blocks(observer->suspected, &nr);
	for (size_t i = 0; i < nr; i++) {
		uint64_t at = blocks[i].hva, end = at + blocks[i].size;

		while (at < end && uffdb_ledger_next(observer->suspected, at, end, &run) > 0) {
			judge_range(engine, &run);
			at = run.start + run.len;
		}
	}
}

static void only_drain(struct uffdb_engine *engine, void *argument)
{
	(void)engine;
	(void)argument;
}

static void note_delay(struct uffdb_engine *engine, uint64_t since_ns)
{
	uint64_t delay = uffdb_now_ns(CLOCK_MONOTONIC) - since_ns;

	if (since_ns && delay > engine->observer->arm_ns_max)
		engine->observer->arm_ns_max = delay;
}

/* What is newly armed is looked at, unless a look is still to be repeated. */
static int look_at_new(struct uffdb_engine *engine, bool *looked)
{
	struct uffdb_observer *observer = engine->observer;
	int error;

	*looked = false;
	observer->locked_bytes = -1;
	if (atomic_exchange(&observer->look_everywhere, false))
		uffdb_windows_look_everywhere(engine->windows);
	if (observer->suspects) {
		if (uffdb_now_ns(CLOCK_MONOTONIC) < observer->look_again_ns)
			return 0;
		look_again(engine);
	}
	error = uffdb_windows_look(engine->windows, look_at_range, engine, looked);
	if (observer->suspects)
		observer->look_again_ns = uffdb_now_ns(CLOCK_MONOTONIC) + LOOK_AGAIN_NS;
	return error;
}

int uffdb_follow(struct uffdb_engine *engine)
{
	uint64_t since_ns = 0;
	int armed = 0, error;
	bool looked = false, gathers = false;

	if (engine->observer) {
		/* Every call on the loop comes after a drain; of what it finds we need no word. */
		uffdb_windows_expect(engine->windows, true);
		uffdb_call_on_loop(engine, only_drain, NULL);
		uffdb_windows_expect(engine->windows, false);
		error = uffdb_slack_tighten_for_gifts(engine);
		if (error)
			return error;
		armed = uffdb_windows_arm_fresh(engine->windows, &since_ns);
		gathers = uffdb_gather(engine);
		if (armed < 0)
			return armed;
		if (armed)
			note_delay(engine, since_ns);
		/* Nothing is trapped now: what holds memory is seen to when it is again. */
		if (engine->config.pagemap_fd >= 0 && !atomic_load(&engine->yielded)) {
			error = look_at_new(engine, &looked);
			if (error)
				return error;
		}
	}
	return armed || looked || gathers || (engine->observer && engine->observer->suspects);
}

int uffdb_engine_follow(struct uffdb_engine *engine)
{
	int followed, tidied;

	pthread_mutex_lock(&engine->control);
	followed = uffdb_follow(engine);
	tidied = followed < 0 ? 0 : uffdb_windows_tidy(engine->windows);
	pthread_mutex_unlock(&engine->control);
	if (followed < 0)
		return followed;
	return tidied < 0 ? tidied : followed || tidied;
}

size_t uffdb_engine_arrivals(const struct uffdb_engine *engine, uint64_t *out, size_t nr)
{
	if (nr > UFFDB_ORDERS)
		nr = UFFDB_ORDERS;
	for (size_t i = 0; i < nr; i++)
		out[i] = engine->observer ? engine->observer->arrivals[i] : 0;
	return nr;
}
