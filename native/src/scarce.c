// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * When the host has no page to give: a pool of huge pages that others have emptied, most of all.
 * The touch is held and its thread waits; it is tried again now and then, for nothing tells of a
 * page that came back. Letting the thread fault on its own would be a SIGBUS or a storm.
 */
#include "clock.h"
#include "engine.h"
#include "uffdballoon.h"

#define AGAIN_NS 20000000ull

static bool is_too_long(const struct uffdb_engine *engine, const struct touch *held,
			uint64_t now_ns)
{
	uint64_t patience_ns = engine->config.memory_patience_ns;

	return patience_ns && now_ns - held->lacking_since_ns >= patience_ns;
}

void uffdb_hold_for_memory(struct uffdb_engine *engine, const struct touch *touch,
			   enum uffdb_lacking lacking)
{
	uint64_t now_ns = uffdb_now_ns(CLOCK_MONOTONIC), again_ns = now_ns + AGAIN_NS;
	struct touch held = *touch;

	held.lacking = lacking;
	if (!touch->lacking_since_ns) {
		held.lacking_since_ns = now_ns;
		uffdb_post(engine, touch, UFFDB_ORDINARY, UFFDB_ACTION_NO_MEMORY);
	}
	if (is_too_long(engine, &held, now_ns)) {
		uffdb_kill_target(engine, touch, UFFDB_ORDINARY);
		again_ns = 0; /* held until it has ended */
	}
	/* A full table: its thread tries again by itself, and comes back here. */
	if (!uffdb_park(engine, &held, 0, UFFDB_ACTION_NO_MEMORY, again_ns))
		uffdb_let_retry(engine, touch);
}

void uffdb_try_again(struct uffdb_engine *engine, struct touch *touch)
{
	bool ballooned = uffdb_ledger_test(engine->ledger, touch->hva) > 0;

	/* It changed hands meanwhile: whoever waits faults anew, and is judged anew. */
	if (ballooned != (touch->lacking != UFFDB_LACKS_PAGE)) {
		uffdb_let_retry(engine, touch);
		return;
	}
	touch->read_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	switch (touch->lacking) {
	case UFFDB_LACKS_GRANT:
		uffdb_grant(engine, touch, touch->lacking_verdict, touch->lacking_action);
		break;
	case UFFDB_LACKS_ZEROS:
		if (touch->protected || touch->minor || !uffdb_zero_read(engine, touch))
			uffdb_act(engine, touch, 0);
		break;
	default:
		uffdb_give_page(engine, touch);
		break;
	}
}
