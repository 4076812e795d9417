// SPDX-License-Identifier: GPL-2.0-or-later
/* Another policy, other terms, while the engine runs. */
#include "contract.h"
#include "engine.h"
#include "judge.h"
#include "ladder.h"
#include "ledger.h"
#include "mailbox.h"
#include "observe.h"
#include "parking.h"
#include "settle.h"
#include "slack.h"
#include "uffdballoon.h"

struct ruling {
	const struct uffdb_ladder *ladder; /* or NULL: it stays */
	const struct uffdb_terms *terms;   /* or NULL: they stay */
	int went_on;
};

static void set_terms(struct uffdb_engine *engine, const struct uffdb_terms *terms)
{
	struct uffdb_contract *contract = &engine->contract;
	const struct uffdb_terms *before = &contract->terms;
	bool counted;

	/* What is left of a grace was counted against the limits of before. */
	if (terms->kind != before->kind || terms->grace_ns != before->grace_ns ||
	    terms->grace_bytes != before->grace_bytes)
		contract->grace = (struct uffdb_grace){0};
	counted = uffdb_contract_counts_reports(contract);
	contract->terms = *terms;
	if (counted && !uffdb_contract_counts_reports(contract) && engine->observer)
		uffdb_observe_no_reports(engine);
	uffdb_ledger_keep_contract(engine->ledger, contract);
}

/* What is a violation still: a ladder that is the same has decided on it. */
static void hold_on(struct uffdb_engine *engine, struct uffdb_held *held, bool by_new_ladder)
{
	if (by_new_ladder)
		uffdb_settle_held(engine, held);
	else
		uffdb_parking_add(&engine->parking, held);
}

/* Who waits for pause or poison does so for the controlling side, which was told of it. */
static int judge_held_anew(struct uffdb_engine *engine, bool by_new_ladder)
{
	static const uint8_t by_rungs[] = {UFFDB_ACTION_FREEZE, UFFDB_ACTION_THROTTLE};
	struct uffdb_parking *parking = &engine->parking;
	uint32_t before = uffdb_parking_count(parking);
	uint64_t newest = parking->last_id; /* what is held anew comes after it */
	struct uffdb_held held;

	for (size_t i = 0; i < sizeof(by_rungs); i++)
		while (uffdb_parking_take_older(parking, by_rungs[i], newest, &held))
			if (uffdb_judge_held(engine, &held))
				hold_on(engine, &held, by_new_ladder);
	return (int)(before - uffdb_parking_count(parking));
}

static void set_ruling(struct uffdb_engine *engine, void *argument)
{
	struct ruling *ruling = argument;

	if (ruling->ladder)
		engine->ladder = *ruling->ladder;
	if (ruling->terms)
		set_terms(engine, ruling->terms);
	ruling->went_on = judge_held_anew(engine, ruling->ladder);
}

int uffdb_engine_set_policy(struct uffdb_engine *engine, const struct uffdb_rung *rungs,
			    uint32_t nr_rungs, const struct uffdb_terms *terms)
{
	struct uffdb_ladder ladder;
	struct ruling ruling = {.ladder = rungs ? &ladder : NULL, .terms = terms};
	int error = rungs ? uffdb_ladder_init(&ladder, rungs, nr_rungs) : 0;

	if (error)
		return error;
	pthread_mutex_lock(&engine->control);
	/* What may have been taken by these terms is known before there are others. */
	error = uffdb_slack_tighten(engine);
	if (!error)
		uffdb_call_on_loop(engine, set_ruling, &ruling);
	pthread_mutex_unlock(&engine->control);
	return error ? error : ruling.went_on;
}
