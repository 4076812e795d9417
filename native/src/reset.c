// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdatomic.h>
#include <time.h>

#include "clock.h"
#include "engine.h"
#include "ladder.h"
#include "ledger.h"
#include "observe.h"
#include "relay.h"
#include "reset.h"
#include "settle.h"
#include "uffdballoon.h"
#include "windows.h"

#define LOOK_NS 500000 /* between looks for what a late monitor tells */

/* What was noted of it for whoever comes after us; unless another one came meanwhile. */
static void forget_reset(struct uffdb_engine *engine, uint64_t at_ns)
{
	struct uffdb_monitor_notes *notes = uffdb_ledger_notes(engine->ledger);
	uint64_t noted_ns = notes ? atomic_load(&notes->reset_ns) : 0;

	if (noted_ns && (!at_ns || noted_ns <= at_ns))
		atomic_compare_exchange_strong(&notes->reset_ns, &noted_ns, 0);
}

static void empty_balloon(struct uffdb_engine *engine, uint64_t at_ns)
{
	const struct uffdb_block *blocks;
	size_t nr;

	/* What a log says before its next drain is dated from this one: no reset comes between. */
	if (engine->observer && engine->observer->toggles)
		uffdb_observe(engine);
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		uffdb_ledger_clear(engine->ledger, blocks[i].hva, blocks[i].size);
		uffdb_let_go(engine, blocks[i].hva, blocks[i].size);
	}
	uffdb_windows_note_all(engine->windows);
	uffdb_contract_reset(&engine->contract, uffdb_now_ns(CLOCK_MONOTONIC));
	uffdb_ledger_keep_contract(engine->ledger, &engine->contract);
	if (engine->observer)
		uffdb_observe_again(engine, at_ns);
	engine->reset_ns = at_ns;
	forget_reset(engine, at_ns);
}

bool uffdb_was_reset(struct uffdb_engine *engine, uint64_t read_ns)
{
	const struct timespec pause = {.tv_nsec = LOOK_NS};
	uint64_t until_ns = read_ns + engine->config.reset_delay_ns;
	uint64_t at_ns = uffdb_relay_take_reset(engine->relay);

	while (!at_ns && engine->config.reset_delay_ns && uffdb_ladder_harms(&engine->ladder) &&
	       uffdb_now_ns(CLOCK_MONOTONIC) < until_ns) {
		nanosleep(&pause, NULL);
		at_ns = uffdb_relay_take_reset(engine->relay);
	}
	if (at_ns)
		empty_balloon(engine, at_ns);
	return at_ns;
}

void uffdb_hear_of_late_reset(struct uffdb_engine *engine)
{
	uint64_t at_ns = uffdb_relay_take_reset(engine->relay);

	if (at_ns)
		empty_balloon(engine, at_ns);
}

void uffdb_hear_of_kept_reset(struct uffdb_engine *engine)
{
	const struct uffdb_monitor_notes *notes = uffdb_ledger_notes(engine->ledger);
	uint64_t heard_ns = engine->relay ? uffdb_relay_take_reset(engine->relay) : 0;
	uint64_t noted_ns = notes ? atomic_load(&notes->reset_ns) : 0;

	if (heard_ns || noted_ns)
		empty_balloon(engine, heard_ns > noted_ns ? heard_ns : noted_ns);
}

void uffdb_hear_of_reset(struct uffdb_engine *engine, uint64_t at_ns)
{
	uint64_t heard_ns = engine->relay ? uffdb_relay_take_reset(engine->relay) : 0;

	if (at_ns && at_ns <= engine->reset_ns && !heard_ns)
		return;
	empty_balloon(engine, at_ns && heard_ns > at_ns ? heard_ns : at_ns);
}
