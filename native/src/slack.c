// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Trap only when it matters. Under `cap` every touch is granted while the balloon is above its
 * floor. So the first touch of a block that is all in the balloon has the windows around it go
 * slack: registered in WP mode alone, which traps nothing and keeps khugepaged out of anonymous
 * memory (of shared memory it would not), so that the kernel serves what follows by itself, with
 * huge pages. What was taken is seen by residency, and leaves the ledger then.
 *
 * The limit is held by counting, and by no rate: what is slack counts as taken, to its last page.
 * Windows go slack, and touches are granted, only as far as the rest is above the floor. Where that
 * rest is too little for a touch, what is slack is looked at first.
 *
 * All trap again when nothing more is taken: a quiet guest wakes nobody, and each of its windows
 * is a tripwire.
 *
 * To have a run trap again and know what was taken of it: register it (nothing absent comes any
 * more), protect it (no zero page is written to any more), and look. What the guest gives up
 * again meanwhile is traced before it is discarded, and still there for a moment; such pages are
 * known (observer->lately), and are looked at as those of any new window are (follow.c).
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "answer.h"
#include "contract.h"
#include "counters.h"
#include "events.h"
#include "ledger.h"
#include "mailbox.h"
#include "observe.h"
#include "pagemap.h"
#include "pages.h"
#include "settle.h"
#include "slack.h"
#include "touch.h"
#include "uffdballoon.h"
#include "windows.h"

#define RUN_BYTES  (32ull << 20) /* that goes slack by one touch, at most */
#define MOST_BYTES (2ull << 30)	 /* that is slack at a time, for what looking at it costs */
#define MOST_RUNS  1024		 /* a run cuts a mapping in three */
/*
 * Between the floor and what is slack: a driver that deflates is traced, and what it takes back
 * leaves the ledger up to 10 ms later (follower.c). QEMU takes back 0.7 GiB/s at most, as was
 * seen (7.2, 131,072 calls in 0.7 s).
 */
#define MARGIN_BYTES (16ull << 20)
#define QUIET_LOOKS  2
#define RANGES	     64
#define TRIES	     64
#define PIECE	     (256ull << 20) /* that is looked at between two batches of faults */

static bool has_node_floors(const struct uffdb_terms *terms)
{
	for (size_t i = 0; i < UFFDB_MAX_NODES; i++)
		if (terms->node_floors[i])
			return true;
	return false;
}

/* Can pages be told from zero pages? */
static bool sees_residency(const struct uffdb_engine *engine)
{
	const struct uffdb_block *blocks;
	struct uffdb_range found;
	uint64_t next;
	size_t nr;

	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	return nr && engine->config.pagemap_fd >= 0 &&
	       uffdb_loose_zero_pages(engine->config.pagemap_fd, blocks[0].hva,
				      blocks[0].hva + UFFDB_PAGE, &found, 1, &next) >= 0;
}

bool uffdb_can_slacken(const struct uffdb_engine *engine)
{
	const struct uffdb_engine_config *config = &engine->config;

	/* Who takes over from a killed manager could not tell what was taken by right. */
	return config->slackens && config->write_protect &&
	       (config->observing == UFFDB_OBSERVE_NONE ||
		config->observing == UFFDB_OBSERVE_TRACE) &&
	       !uffdb_ledger_contract(engine->ledger) && sees_residency(engine);
}

uint64_t uffdb_slack_certain(const struct uffdb_engine *engine)
{
	/* In this order: what is taken leaves the ledger first. */
	uint64_t slack = uffdb_windows_slack_bytes(engine->windows);
	uint64_t all = uffdb_ledger_pages(engine->ledger) * UFFDB_PAGE;

	return all > slack ? all - slack : 0;
}

/* What is in the balloon for certain beyond the floor, and @bytes more. */
static bool is_above_floor(const struct uffdb_engine *engine, uint64_t bytes)
{
	return uffdb_slack_certain(engine) >= engine->contract.terms.floor_bytes + bytes;
}

struct look {
	struct uffdb_range run;
	bool traps; /* it does again */
	int error;
};

static int protect(const struct uffdb_engine *engine, uint64_t start, uint64_t len, bool on)
{
	int error = -EAGAIN;

	for (int i = 0; i < TRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_writeprotect(engine->config.uffd, start, len, on);
	return error;
}

static void take_pages(struct uffdb_engine *engine, const struct look *look, uint64_t start,
		       uint64_t end)
{
	int64_t pages = uffdb_ledger_clear(engine->ledger, start, end - start);

	if (pages > 0)
		atomic_fetch_add(&engine->slack.taken_bytes, (uint64_t)pages * UFFDB_PAGE);
	uffdb_forget_reports(engine, start, end - start);
	if (look->traps)
		protect(engine, start, end - start, false);
	for (uint64_t at = start; at < end; at = (at / UFFDB_HUGE + 1) * UFFDB_HUGE)
		uffdb_windows_note_change(engine->windows, at);
}

/* These were given up again: they are as those of any new window. */
static void leave_to_look(struct uffdb_engine *engine, const struct look *look, uint64_t start,
			  uint64_t end)
{
	if (look->traps)
		for (uint64_t at = start; at < end; at = (at / UFFDB_HUGE + 1) * UFFDB_HUGE)
			uffdb_windows_look_again_at(engine->windows, at);
}

static void take_range(struct uffdb_engine *engine, const struct look *look, uint64_t start,
		       uint64_t end)
{
	const struct uffdb_ledger *lately = engine->observer ? engine->observer->lately : NULL;

	while (start < end) {
		struct uffdb_range again;

		if (!lately || uffdb_ledger_next(lately, start, end, &again) <= 0)
			again = (struct uffdb_range){end, 0};
		if (again.start > start)
			take_pages(engine, look, start, again.start);
		leave_to_look(engine, look, again.start, again.start + again.len);
		start = again.start + again.len;
	}
}

static void take_memory(struct uffdb_engine *engine, const struct look *look,
			const struct uffdb_memory *memory)
{
	uint64_t end = memory->start + memory->len, next;

	if (!memory->huge) {
		take_range(engine, look, memory->start, end);
		return;
	}
	for (uint64_t at = memory->start; at < end; at = next) {
		next = (at / UFFDB_HUGE + 1) * UFFDB_HUGE;
		next = next < end ? next : end;
		if (uffdb_is_own(engine->config.pagemap_fd, at))
			take_range(engine, look, at, next);
	}
}

/* Of a stretch that is in the balloon, by the ledger. */
static int take_of(struct uffdb_engine *engine, const struct look *look, uint64_t at, uint64_t end)
{
	struct uffdb_memory found[RANGES];

	while (at < end) {
		uint64_t next = end;
		int nr = uffdb_sized_memory(engine->config.pagemap_fd, at, end, found, RANGES,
					    &next);

		if (nr < 0)
			return nr;
		for (int i = 0; i < nr; i++)
			take_memory(engine, look, &found[i]);
		at = next > at ? next : end;
	}
	return 0;
}

static int take_in_run(struct uffdb_engine *engine, const struct look *look)
{
	uint64_t at = look->run.start, end = at + look->run.len;
	struct uffdb_range ballooned;
	int error = 0;

	while (!error && at < end && uffdb_ledger_next(engine->ledger, at, end, &ballooned) > 0) {
		at = ballooned.start + ballooned.len;
		if (look->traps)
			error = protect(engine, ballooned.start, ballooned.len, true);
		if (!error)
			error = take_of(engine, look, ballooned.start, at);
	}
	return error;
}

/* Nothing of it is in the balloon any more: what the guest gives up next is to be trapped. */
static int end_empty(struct uffdb_engine *engine, uint64_t at, uint64_t end)
{
	int error = 0;

	while (!error && at < end) {
		uint64_t last = at;

		while (last < end && !uffdb_ledger_count(engine->ledger, last, UFFDB_HUGE))
			last += UFFDB_HUGE;
		if (last > at) {
			const struct uffdb_range empty = {at, last - at};

			error = uffdb_windows_trap_slack(engine->windows, &empty);
			if (!error)
				uffdb_windows_end_slack(engine->windows, &empty);
		}
		at = last + UFFDB_HUGE;
	}
	return error;
}

/* The loop's, while nobody else changes windows. */
static void look_only(struct uffdb_engine *engine, void *argument)
{
	struct look *look = argument;

	look->error = take_in_run(engine, look);
	if (!look->error)
		look->error = end_empty(engine, look->run.start, look->run.start + look->run.len);
}

/* The same: a run traps again, and what was taken of it is known. */
static void tighten_run(struct uffdb_engine *engine, void *argument)
{
	struct look *look = argument;

	look->error = uffdb_windows_trap_slack(engine->windows, &look->run);
	if (!look->error)
		look->error = take_in_run(engine, look);
	/* A target that is gone takes nothing any more. */
	if (look->error == -ESRCH)
		look->error = 0;
	if (look->error)
		return;
	uffdb_windows_end_slack(engine->windows, &look->run);
	if (engine->observer)
		uffdb_ledger_clear(engine->observer->lately, look->run.start, look->run.len);
}

/* Until the balloon is above its floor by @bytes, for certain; the loop's. */
static int tighten_until(struct uffdb_engine *engine, uint64_t bytes)
{
	struct look look = {.traps = true};
	uint64_t at = 0;

	while (!look.error && !is_above_floor(engine, bytes) &&
	       uffdb_windows_next_slack(engine->windows, &at, &look.run))
		tighten_run(engine, &look);
	return look.error;
}

int uffdb_slack_tighten(struct uffdb_engine *engine)
{
	struct look look = {.traps = true};
	uint64_t at = 0;

	while (!look.error && uffdb_windows_next_slack(engine->windows, &at, &look.run))
		uffdb_call_on_loop(engine, tighten_run, &look);
	if (!look.error)
		engine->slack.runs = 0;
	return look.error;
}

int uffdb_slack_tighten_for_gifts(struct uffdb_engine *engine)
{
	const struct uffdb_observer *observer = engine->observer;

	if (!uffdb_has_slack(engine) ||
	    (!uffdb_ledger_pages(observer->lately) && !atomic_load(&observer->look_everywhere)))
		return 0;
	return uffdb_slack_tighten(engine);
}

static int look_at_all(struct uffdb_engine *engine)
{
	struct look look = {.traps = false};
	struct uffdb_range run;
	uint64_t at = 0;

	while (!look.error && uffdb_windows_next_slack(engine->windows, &at, &run))
		for (uint64_t start = run.start, end = run.start + run.len;
		     !look.error && start < end; start += look.run.len) {
			uint64_t left = end - start;

			look.run = (struct uffdb_range){start, left < PIECE ? left : PIECE};
			uffdb_call_on_loop(engine, look_only, &look);
		}
	return look.error;
}

int64_t uffdb_engine_look(struct uffdb_engine *engine)
{
	int64_t before, taken;
	int error;

	pthread_mutex_lock(&engine->control);
	before = (int64_t)atomic_load(&engine->slack.taken_bytes);
	error = look_at_all(engine);
	taken = (int64_t)atomic_load(&engine->slack.taken_bytes) - before;
	pthread_mutex_unlock(&engine->control);
	return error && error != -ESRCH ? error : taken;
}

static void ask_whether_near(struct uffdb_engine *engine, void *argument)
{
	*(bool *)argument = !is_above_floor(engine, MARGIN_BYTES / 2);
}

void uffdb_slack_keep_up(struct uffdb_engine *engine, bool look)
{
	struct uffdb_slack *slack = &engine->slack;
	bool near = false;

	uffdb_call_on_loop(engine, ask_whether_near, &near);
	if (look && !near) {
		uint64_t before = slack->seen_bytes;

		look_at_all(engine);
		slack->seen_bytes = atomic_load(&slack->taken_bytes);
		slack->quiet_looks = slack->seen_bytes == before ? slack->quiet_looks + 1 : 0;
	}
	if (near || slack->quiet_looks >= QUIET_LOOKS) {
		slack->quiet_looks = 0;
		uffdb_slack_tighten(engine);
	}
}

bool uffdb_slack_make_room(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	if (!touch->ballooned || engine->contract.terms.kind != UFFDB_CONTRACT_CAP ||
	    !uffdb_has_slack(engine) || is_above_floor(engine, touch->size))
		return true;
	/* Of a late touch the controlling side waits for us. */
	if (!touch->late && pthread_mutex_trylock(&engine->control))
		return false;
	/* What cannot be tightened is judged as taken. */
	tighten_until(engine, UFFDB_HUGE);
	if (!touch->late)
		pthread_mutex_unlock(&engine->control);
	return true;
}

bool uffdb_slack_is_for(const struct uffdb_engine *engine, const struct uffdb_block *block)
{
	return engine->slack.on && !block->flags &&
	       engine->contract.terms.kind == UFFDB_CONTRACT_CAP &&
	       !has_node_floors(&engine->contract.terms) && !atomic_load(&engine->yielded);
}

/* As much as may be taken unseen, and be seen to by one look. */
static uint64_t most_of_slack(struct uffdb_engine *engine)
{
	uint64_t floor = engine->contract.terms.floor_bytes + MARGIN_BYTES, certain;

	if (uffdb_windows_slack_bytes(engine->windows) >= MOST_BYTES ||
	    engine->slack.runs >= MOST_RUNS) {
		if (tighten_until(engine, UINT64_MAX - engine->contract.terms.floor_bytes))
			return 0;
		engine->slack.runs = 0;
	}
	if (!is_above_floor(engine, MARGIN_BYTES + UFFDB_HUGE))
		tighten_until(engine, MARGIN_BYTES + RUN_BYTES);
	certain = uffdb_slack_certain(engine);
	if (certain < floor + UFFDB_HUGE)
		return 0;
	return certain - floor < RUN_BYTES ? certain - floor : RUN_BYTES;
}

static bool slacken_around(struct uffdb_engine *engine, const struct uffdb_touch *touch,
			   struct uffdb_range *run)
{
	uint64_t most = most_of_slack(engine);

	if (!most || !uffdb_windows_slacken(engine->windows, touch->hva, most, run))
		return false;
	engine->slack.runs++;
	return true;
}

static void call_granted(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	uffdb_count(&engine->counters.granted, 1);
	uffdb_ledger_clear(engine->ledger, touch->hva, touch->size);
	uffdb_forget_reports(engine, touch->hva, touch->size);
	uffdb_events_post(&engine->events, &engine->counters, touch, UFFDB_GRANTED,
			  UFFDB_ACTION_GRANT);
}

bool uffdb_slack_grant(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	struct uffdb_range run;
	bool slackened;

	if (touch->late || !uffdb_slack_is_for(engine, touch->block))
		return false;
	if (uffdb_windows_is_slack(engine->windows, touch->hva)) {
		/* It was read before its window went slack, which woke it. */
		call_granted(engine, touch);
		uffdb_answer_retry(&engine->answerer, touch);
		return true;
	}
	if (pthread_mutex_trylock(&engine->control))
		return false;
	slackened = slacken_around(engine, touch, &run);
	if (slackened)
		call_granted(engine, touch);
	pthread_mutex_unlock(&engine->control);
	if (slackened)
		uffdb_let_go(engine, run.start, run.len);
	return slackened;
}
