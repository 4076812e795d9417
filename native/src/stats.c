// SPDX-License-Identifier: GPL-2.0-or-later
/* What is known of the engine by counting. */
#include "engine.h"
#include "histogram.h"
#include "ledger.h"
#include "observe.h"
#include "parking.h"
#include "turn.h"
#include "uffdballoon.h"
#include "windows.h"

/* Of pages of 4 KiB in the driver's balloon, those whose huge page is not in ours. */
static uint64_t pieces_of(const struct uffdb_observer *observer)
{
	const struct uffdb_block *blocks;
	uint64_t pieces = 0, whole;
	size_t nr;

	if (!observer->pieces)
		return 0;
	blocks = uffdb_ledger_blocks(observer->reported, &nr);
	for (size_t i = 0; i < nr; i++)
		if (blocks[i].flags & UFFDB_BLOCK_HUGETLB)
			pieces += uffdb_ledger_count(observer->toggles->driver, blocks[i].hva,
						     blocks[i].size);
	whole = uffdb_ledger_pages(observer->pieces->whole);
	return pieces > whole ? pieces - whole : 0;
}

static void add_observed(const struct uffdb_observer *observer, struct uffdb_stats *stats)
{
	stats->observed_inflated = observer->inflated;
	stats->observed_deflated = observer->deflated;
	stats->reported_bytes = observer->reported_bytes;
	stats->reported_pages = uffdb_ledger_pages(observer->reported);
	stats->regained_bytes = observer->regained;
	stats->refused_discards = observer->refused;
	stats->lost_records = observer->lost;
	stats->resyncs = observer->resyncs;
	stats->doubtful = observer->doubts;
	stats->given_twice = observer->given_twice;
	stats->pieces = pieces_of(observer);
	stats->late = observer->late;
	stats->late_reads = observer->late_reads;
	stats->arm_ns_max = observer->arm_ns_max;
}

void uffdb_engine_stats(const struct uffdb_engine *engine, struct uffdb_stats *stats)
{
	uffdb_turn_await_end(&engine->turn);
	*stats = (struct uffdb_stats){
		.ordinary = engine->counters.ordinary,
		.granted = engine->counters.granted,
		.violations = engine->counters.violations,
		.host_reads = engine->counters.host_reads,
		.filled_outside = engine->counters.filled_outside,
		.slipped_writes = engine->counters.slipped_writes,
		.exists = engine->counters.exists,
		.retried = engine->counters.retried,
		.gone = engine->counters.gone,
		.failed = engine->counters.failed,
		.together = engine->counters.together,
		.around_pages = engine->counters.around_pages,
		.zapped_again = engine->counters.zapped_again,
		.events_posted = engine->counters.events_posted,
		.events_dropped = engine->counters.events_dropped,
		.parked = uffdb_parking_count(&engine->parking),
		.moves = engine->counters.moves,
		.moving = engine->moving,
		.follow_errno = (uint64_t)-engine->follow_error,
		.windows = uffdb_windows_count(engine->windows),
		.armed_bytes = uffdb_windows_bytes(engine->windows),
		.unarmed_bytes = uffdb_windows_slack_bytes(engine->windows),
		.taken_unseen_bytes = atomic_load(&engine->slack.taken_bytes),
		.slackens = engine->slack.on,
	};
	/* Of the windows; they are read while they change. */
	stats->armed_bytes -= stats->unarmed_bytes < stats->armed_bytes ? stats->unarmed_bytes
									: stats->armed_bytes;
	for (size_t i = 0; i < UFFDB_ACTIONS; i++)
		stats->actions[i] = engine->counters.actions[i];
	for (size_t i = 0; i < UFFDB_ERRNOS; i++)
		stats->failed_errno[i] = engine->counters.failed_errno[i];
	if (engine->observer)
		add_observed(engine->observer, stats);
}

uint64_t uffdb_engine_latency(const struct uffdb_engine *engine, uint32_t permille)
{
	uffdb_turn_await_end(&engine->turn);
	return uffdb_histogram_quantile(&engine->latency, permille);
}

size_t uffdb_engine_latencies(const struct uffdb_engine *engine, struct uffdb_bucket *out,
			      size_t nr)
{
	uffdb_turn_await_end(&engine->turn);
	return uffdb_histogram_list(&engine->latency, out, nr);
}
