// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>

#include "clock.h"
#include "ladder.h"
#include "touch.h"
#include "uffdballoon.h"

/* What waits for the controlling side does not wait for ever: it may have died in part. */
#define PATIENCE_NS (10 * UFFDB_NS_PER_S)

int uffdb_ladder_init(struct uffdb_ladder *ladder, const struct uffdb_rung *rungs, uint32_t nr)
{
	*ladder = (struct uffdb_ladder){.nr_rungs = nr};
	if (nr > UFFDB_MAX_RUNGS)
		return -EINVAL;
	for (uint32_t i = 0; i < nr; i++) {
		ladder->rungs[i] = rungs[i];
		if (rungs[i].kind == UFFDB_RUNG_THROTTLE && !rungs[i].bytes_per_s)
			return -EINVAL;
	}
	return 0;
}

bool uffdb_ladder_harms(const struct uffdb_ladder *ladder)
{
	for (uint32_t i = 0; i < ladder->nr_rungs; i++)
		if (ladder->rungs[i].kind >= UFFDB_RUNG_FREEZE)
			return true;
	return false;
}

/*
 * Take tokens for a touch from the bucket.
 *
 * Return: 0, or the nanoseconds until there will be enough of them.
 */
static uint64_t take_tokens(struct uffdb_ladder *ladder, const struct uffdb_rung *rung,
			    uint64_t bytes, uint64_t now_ns)
{
	uint64_t burst = rung->burst_bytes > bytes ? rung->burst_bytes : bytes;
	__uint128_t gained =
		(__uint128_t)(now_ns - ladder->tokens_ns) * rung->bytes_per_s / UFFDB_NS_PER_S;

	if (!ladder->tokens_ns || gained + ladder->tokens >= burst) {
		ladder->tokens = burst;
		ladder->tokens_ns = now_ns;
	} else if (gained) {
		/* What makes less than a token stays in the clock. */
		ladder->tokens += (uint64_t)gained;
		ladder->tokens_ns += (uint64_t)(gained * UFFDB_NS_PER_S / rung->bytes_per_s);
	}
	if (ladder->tokens >= bytes) {
		ladder->tokens -= bytes;
		return 0;
	}
	return (uint64_t)((__uint128_t)(bytes - ladder->tokens) * UFFDB_NS_PER_S /
			  rung->bytes_per_s) +
	       1;
}

static bool decide_on(struct uffdb_decision *decision, enum uffdb_outcome outcome, uint8_t action,
		      uint64_t deadline_ns)
{
	decision->outcome = outcome;
	decision->action = action;
	decision->deadline_ns = deadline_ns;
	return true;
}

/* Grant at the rate; above it the next rung answers, or the vCPU waits when there is none. */
static bool throttle(struct uffdb_ladder *ladder, const struct uffdb_touch *touch, uint64_t now_ns,
		     struct uffdb_decision *decision)
{
	uint64_t wait_ns = take_tokens(ladder, &ladder->rungs[decision->rung], touch->size, now_ns);

	if (!wait_ns)
		return decide_on(decision, UFFDB_OUTCOME_GRANT, UFFDB_ACTION_THROTTLE, 0);
	if (decision->rung + 1 != ladder->nr_rungs || touch->late)
		return false;
	return decide_on(decision, UFFDB_OUTCOME_HOLD, UFFDB_ACTION_THROTTLE, now_ns + wait_ns);
}

/* Does rung number @decision->rung answer? */
static bool ask_rung(struct uffdb_ladder *ladder, const struct uffdb_touch *touch, uint64_t now_ns,
		     struct uffdb_decision *decision)
{
	const struct uffdb_rung *rung = &ladder->rungs[decision->rung];

	switch (rung->kind) {
	case UFFDB_RUNG_ZERO_READ:
		return uffdb_is_zero_readable(touch) &&
		       decide_on(decision, UFFDB_OUTCOME_ZERO_READ, UFFDB_ACTION_ZERO_READ, 0);
	case UFFDB_RUNG_THROTTLE:
		return throttle(ladder, touch, now_ns, decision);
	case UFFDB_RUNG_FREEZE:
		return !touch->late && decide_on(decision, UFFDB_OUTCOME_HOLD, UFFDB_ACTION_FREEZE,
						 rung->hold_ns ? now_ns + rung->hold_ns : 0);
	case UFFDB_RUNG_PAUSE:
		/* The monitor has to be told, which is Python's: held until it was. */
		return decide_on(decision, UFFDB_OUTCOME_HOLD, UFFDB_ACTION_PAUSE,
				 now_ns + PATIENCE_NS);
	case UFFDB_RUNG_POISON:
		/* Only an absent page can be: one that gave zeros is zapped first, elsewhere. */
		if (touch->protected)
			return decide_on(decision, UFFDB_OUTCOME_HOLD, UFFDB_ACTION_POISON,
					 now_ns + PATIENCE_NS);
		return decide_on(decision, UFFDB_OUTCOME_POISON, UFFDB_ACTION_POISON, 0);
	case UFFDB_RUNG_KILL:
		return decide_on(decision, UFFDB_OUTCOME_KILL, UFFDB_ACTION_KILL, 0);
	default:
		return decide_on(decision, UFFDB_OUTCOME_GRANT, UFFDB_ACTION_GRANT, 0);
	}
}

struct uffdb_decision uffdb_ladder_decide(struct uffdb_ladder *ladder,
					  const struct uffdb_touch *touch, uint32_t rung,
					  uint64_t now_ns)
{
	/* A ladder that ends early must not leave a vCPU asleep. */
	struct uffdb_decision decision = {
		.outcome = UFFDB_OUTCOME_GRANT,
		.action = UFFDB_ACTION_GRANT,
		.rung = rung,
	};

	while (decision.rung < ladder->nr_rungs && !ask_rung(ladder, touch, now_ns, &decision))
		decision.rung++;
	return decision;
}
