// SPDX-License-Identifier: GPL-2.0-or-later
/* The policy ladder: the first rung that can answer a violation does. */
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "counter.h"
#include "engine.h"
#include "ring.h"
#include "touched.h"
#include "uffdballoon.h"
#include "windows.h"

/* What waits for the controlling side does not wait for ever: it may have died in part. */
#define PATIENCE_NS (10 * UFFDB_NS_PER_S)

/*
 * Tell of a touch. Before its answer, so that whoever sees the guest go on
 * finds it counted and told.
 */
void uffdb_post(struct uffdb_engine *engine, const struct touch *touch, uint8_t verdict,
		uint8_t action)
{
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	struct uffdb_event event = {
		.seq = engine->seq++,
		.time_ns = uffdb_now_ns(CLOCK_REALTIME),
		.hva = touch->hva,
		.size = touch->size,
		.answer_ns = now_ns - touch->read_ns,
		.tid = touch->tid,
		.write = touch->write,
		.verdict = verdict,
		.action = action,
		.role = touch->role,
	};

	uffdb_touched_note(engine->touched, touch->hva, now_ns);
	uffdb_count(&engine->actions[action], 1);
	uffdb_count(uffdb_ring_post(engine->ring, &event) ? &engine->events_posted
							  : &engine->events_dropped,
		    1);
}

/* Call a page the guest's. Before it is answered: it must not be judged as ballooned again. */
void uffdb_take_out(struct uffdb_engine *engine, const struct touch *touch)
{
	uffdb_ledger_clear(engine->ledger, touch->hva, touch->size);
	uffdb_windows_note_change(engine->windows, touch->hva);
}

void uffdb_grant(struct uffdb_engine *engine, const struct touch *touch, uint8_t verdict,
		 uint8_t action)
{
	bool scarce =
		touch->block->flags & UFFDB_BLOCK_HUGETLB && !touch->protected && !touch->minor;

	/* Of what may be lacking, before the page is called the guest's: its window must stay. */
	if (scarce && uffdb_fill_scarce(engine, touch)) {
		struct touch held = *touch;

		held.lacking_verdict = verdict;
		held.lacking_action = action;
		uffdb_hold_for_memory(engine, &held, UFFDB_LACKS_GRANT);
		return;
	}
	uffdb_take_out(engine, touch);
	uffdb_post(engine, touch, verdict, action);
	if (scarce)
		uffdb_wake_filled(engine, touch);
	else
		uffdb_give_page(engine, touch);
}

void uffdb_kill_target(struct uffdb_engine *engine, const struct touch *touch, uint8_t verdict)
{
	uffdb_post(engine, touch, verdict, UFFDB_ACTION_KILL);
	syscall(SYS_pidfd_send_signal, engine->config.pidfd, SIGKILL, NULL, 0);
}

/*
 * Try to answer a read with zeros; false when it turns out to be a write, whose
 * page is there by now, write-protected.
 */
bool uffdb_zero_read(struct uffdb_engine *engine, struct touch *touch)
{
	enum uffdb_zeroed zeroed = uffdb_arm_zeros(engine, touch);

	if (zeroed == UFFDB_WRITTEN) {
		uffdb_count(&engine->slipped_writes, 1);
		touch->write = true;
		touch->protected = true;
		return false;
	}
	if (zeroed == UFFDB_NO_PAGE) {
		uffdb_hold_for_memory(engine, touch, UFFDB_LACKS_ZEROS);
		return true;
	}
	if (zeroed == UFFDB_UNPROTECTED) {
		uffdb_take_out(engine, touch);
		uffdb_post(engine, touch,
			   touch->role == UFFDB_ROLE_HOST_READER ? UFFDB_GRANTED : UFFDB_VIOLATION,
			   UFFDB_ACTION_GRANT);
		uffdb_let_retry(engine, touch);
		return true;
	}
	if (touch->role == UFFDB_ROLE_HOST_READER)
		uffdb_count(&engine->host_reads, 1);
	else
		uffdb_post(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_ZERO_READ);
	if (zeroed == UFFDB_ZEROED)
		uffdb_let_retry(engine, touch);
	return true;
}

/*
 * Take tokens for a touch from the bucket.
 *
 * Return: 0, or the nanoseconds until there will be enough of them.
 */
static uint64_t throttle(struct uffdb_engine *engine, const struct uffdb_rung *rung,
			 const struct touch *touch)
{
	uint64_t now = uffdb_now_ns(CLOCK_MONOTONIC);
	uint64_t burst = rung->burst_bytes > touch->size ? rung->burst_bytes : touch->size;
	__uint128_t gained =
		(__uint128_t)(now - engine->tokens_ns) * rung->bytes_per_s / UFFDB_NS_PER_S;

	if (!engine->tokens_ns || gained + engine->tokens >= burst) {
		engine->tokens = burst;
		engine->tokens_ns = now;
	} else if (gained) {
		/* What makes less than a token stays in the clock. */
		engine->tokens += (uint64_t)gained;
		engine->tokens_ns += (uint64_t)(gained * UFFDB_NS_PER_S / rung->bytes_per_s);
	}
	if (engine->tokens >= touch->size) {
		engine->tokens -= touch->size;
		return 0;
	}
	return (uint64_t)((__uint128_t)(touch->size - engine->tokens) * UFFDB_NS_PER_S /
			  rung->bytes_per_s) +
	       1;
}

/* Grant at the rate; above it the next rung answers, or the vCPU waits when there is none. */
static bool act_throttle(struct uffdb_engine *engine, const struct touch *touch, uint32_t index)
{
	uint64_t wait_ns = throttle(engine, &engine->config.rungs[index], touch);

	if (!wait_ns) {
		uffdb_grant(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_THROTTLE);
		return true;
	}
	return index + 1 == engine->config.nr_rungs && !touch->late &&
	       uffdb_park(engine, touch, index, UFFDB_ACTION_THROTTLE,
			  uffdb_now_ns(CLOCK_MONOTONIC) + wait_ns);
}

static bool act_freeze(struct uffdb_engine *engine, const struct touch *touch, uint32_t index)
{
	uint64_t hold_ns = engine->config.rungs[index].hold_ns;
	uint64_t deadline = hold_ns ? uffdb_now_ns(CLOCK_MONOTONIC) + hold_ns : 0;

	if (touch->late || !uffdb_park(engine, touch, index, UFFDB_ACTION_FREEZE, deadline))
		return false;
	uffdb_post(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_FREEZE);
	return true;
}

/* The monitor has to be told, which is Python's: held until it was. */
static bool act_pause(struct uffdb_engine *engine, const struct touch *touch, uint32_t index)
{
	uint64_t deadline = uffdb_now_ns(CLOCK_MONOTONIC) + PATIENCE_NS;

	if (!uffdb_park(engine, touch, index, UFFDB_ACTION_PAUSE, deadline))
		return false;
	uffdb_post(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_PAUSE);
	return true;
}

/* Only an absent page can be poisoned: one that gave zeros has to be zapped first, elsewhere. */
static bool act_poison(struct uffdb_engine *engine, const struct touch *touch, uint32_t index)
{
	uint64_t deadline = uffdb_now_ns(CLOCK_MONOTONIC) + PATIENCE_NS;

	if (!touch->protected) {
		uffdb_post(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_POISON);
		if (uffdb_poison_page(engine, touch))
			return true;
		uffdb_count(&engine->failed, 1);
		return false;
	}
	if (!uffdb_park(engine, touch, index, UFFDB_ACTION_POISON, deadline))
		return false;
	uffdb_post(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_POISON);
	return true;
}

void uffdb_act(struct uffdb_engine *engine, struct touch *touch, uint32_t rung)
{
	for (uint32_t i = rung; i < engine->config.nr_rungs; i++) {
		switch (engine->config.rungs[i].kind) {
		case UFFDB_RUNG_ZERO_READ:
			if (uffdb_is_zero_readable(engine, touch) && uffdb_zero_read(engine, touch))
				return;
			break;
		case UFFDB_RUNG_THROTTLE:
			if (act_throttle(engine, touch, i))
				return;
			break;
		case UFFDB_RUNG_FREEZE:
			if (act_freeze(engine, touch, i))
				return;
			break;
		case UFFDB_RUNG_PAUSE:
			if (act_pause(engine, touch, i))
				return;
			break;
		case UFFDB_RUNG_POISON:
			if (act_poison(engine, touch, i))
				return;
			break;
		case UFFDB_RUNG_KILL:
			uffdb_kill_target(engine, touch, UFFDB_VIOLATION);
			return;
		default:
			uffdb_grant(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_GRANT);
			return;
		}
	}
	/* A ladder that ends early, or a full table, must not leave a vCPU asleep. */
	uffdb_grant(engine, touch, UFFDB_VIOLATION, UFFDB_ACTION_GRANT);
}
