// SPDX-License-Identifier: GPL-2.0-or-later
#include <sched.h>

#include "answer.h"
#include "clock.h"
#include "counters.h"
#include "drop.h"
#include "engine.h"
#include "gift.h"
#include "judge.h"
#include "ledger.h"
#include "observe.h"
#include "pagemap.h"
#include "pages.h"
#include "parking.h"
#include "reset.h"
#include "settle.h"
#include "slack.h"
#include "touch.h"
#include "uffdballoon.h"

/*
 * Was this fault of a write-protected page answered together with another
 * thread's? Then it is no touch of what the ledger speaks of.
 */
static bool is_stale(const struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	return touch->protected && engine->config.pagemap_fd >= 0 &&
	       !uffdb_is_protected(engine->config.pagemap_fd, touch->hva);
}

static struct uffdb_judged judged_by(const struct uffdb_engine *engine,
				     const struct uffdb_touch *touch)
{
	return (struct uffdb_judged){
		.ballooned_bytes = uffdb_slack_certain(engine),
		.touched_bytes = touch->ballooned ? touch->size : 0,
		.now_ns = touch->read_ns,
		.role = touch->role,
		.node = touch->block->node,
		.node_ballooned_bytes =
			uffdb_ledger_node_pages(engine->ledger, touch->block->node) * UFFDB_PAGE,
	};
}

static uint32_t ask_contract(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	const struct uffdb_judged judged = judged_by(engine, touch);
	bool in_grace = engine->contract.grace.runs;
	uint32_t verdict = uffdb_contract_judge(&engine->contract, &judged);

	/* Whoever comes after us finds it there. */
	if (in_grace)
		uffdb_ledger_keep_contract(engine->ledger, &engine->contract);
	return verdict;
}

/* As the contract says, of the balloon as it is after all resets that the monitor has told of. */
static uint32_t find_verdict(struct uffdb_engine *engine, struct uffdb_touch *touch)
{
	uint32_t verdict = ask_contract(engine, touch);

	while (verdict == UFFDB_VIOLATION && engine->relay &&
	       uffdb_was_reset(engine, touch->read_ns)) {
		touch->ballooned = uffdb_ledger_test(engine->ledger, touch->hva) > 0;
		verdict = ask_contract(engine, touch);
	}
	return verdict;
}

static void on_violation(struct uffdb_engine *engine, struct uffdb_touch *touch)
{
	/* It may have been deflated in what the trace has lost. */
	if (engine->observer && uffdb_is_doubtful(engine, touch->hva)) {
		uffdb_count(&engine->observer->doubts, 1);
		uffdb_grant(engine, touch, UFFDB_GRANTED, UFFDB_ACTION_GRANT);
		return;
	}
	touch->told = uffdb_was_told(engine, touch);
	uffdb_count(touch->told ? &engine->counters.exists : &engine->counters.violations, 1);
	uffdb_settle(engine, touch, 0);
}

/* Migration, dump or monitor: zeros are right for them, and cost nothing. */
static void serve_host_reader(struct uffdb_engine *engine, struct uffdb_touch *touch)
{
	if (!uffdb_is_zero_readable(touch)) {
		/* A kernel that cannot protect: the guest's next touch will not be seen. */
		uffdb_count(&engine->counters.host_reads, 1);
		uffdb_give(engine, touch);
		return;
	}
	if (uffdb_give_zeros(engine, touch))
		return;
	/* A vCPU wrote in between; its write is what is judged. */
	touch->role = UFFDB_ROLE_VCPU;
	uffdb_count(&engine->counters.violations, 1);
	uffdb_settle(engine, touch, 0);
}

static void grant_by_contract(struct uffdb_engine *engine, const struct uffdb_touch *touch)
{
	const struct uffdb_judged judged = judged_by(engine, touch);

	if (uffdb_slack_grant(engine, touch))
		return;
	if (uffdb_grant_as_given(engine, touch, &judged))
		return;
	uffdb_count(&engine->counters.granted, 1);
	uffdb_grant_around(engine, touch);
}

static void act_on(struct uffdb_engine *engine, struct uffdb_touch *touch, uint32_t verdict)
{
	switch (verdict) {
	case UFFDB_VIOLATION:
		on_violation(engine, touch);
		break;
	case UFFDB_GRANTED:
		grant_by_contract(engine, touch);
		break;
	default:
		if (touch->ballooned) {
			serve_host_reader(engine, touch);
			break;
		}
		uffdb_count(&engine->counters.ordinary, 1);
		uffdb_give_around(engine, touch);
		break;
	}
}

void uffdb_judge(struct uffdb_engine *engine, struct uffdb_touch *touch)
{
	if (uffdb_parking_count(&engine->parking) && uffdb_parking_knows(&engine->parking, touch))
		return;
	if (!touch->ballooned && uffdb_answer_is_given(&engine->answerer, touch->hva)) {
		uffdb_count(&engine->counters.ordinary, 1);
		uffdb_count(&engine->counters.together, 1);
		return;
	}
	if (touch->ballooned && is_stale(engine, touch)) {
		uffdb_count(&engine->counters.exists, 1);
		uffdb_answer_retry(&engine->answerer, touch);
		return;
	}
	if (!uffdb_slack_make_room(engine, touch)) {
		/* It faults again, until whoever is at the windows is done. */
		sched_yield();
		uffdb_answer_retry(&engine->answerer, touch);
		return;
	}
	act_on(engine, touch, find_verdict(engine, touch));
}

bool uffdb_judge_held(struct uffdb_engine *engine, struct uffdb_held *held)
{
	uint32_t verdict;

	held->touch.read_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	verdict = find_verdict(engine, &held->touch);
	if (verdict == UFFDB_VIOLATION)
		return true;
	act_on(engine, &held->touch, verdict);
	return false;
}

void uffdb_judge_late(struct uffdb_engine *engine, uint64_t hva, uint64_t size)
{
	struct uffdb_touch touch = {
		.hva = hva,
		.size = size,
		.read_ns = uffdb_now_ns(CLOCK_MONOTONIC),
		.role = UFFDB_ROLE_VCPU, /* a reader would have got the zero page */
		.write = true,
		.protected = true, /* it is there; to grant it is to lift what may be on it */
		.late = true,
		.ballooned = true,
		.block = uffdb_ledger_block(engine->ledger, hva),
	};

	uffdb_slack_make_room(engine, &touch);
	act_on(engine, &touch, find_verdict(engine, &touch));
}
