// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Pages that were given up and hold zeros all the same: a touch of a page beside them, before
 * their window was there, filled a whole huge page; or khugepaged did; or a reader of private huge
 * pages was lent them. Nobody has used them, so they are zapped again. Only the target can do that,
 * and whoever makes it do it is slow: the fault loop is held meanwhile, so that no page is granted
 * between the last look and the zap.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "again.h"
#include "clock.h"
#include "counters.h"
#include "engine.h"
#include "ledger.h"
#include "mailbox.h"
#include "pagemap.h"
#include "pages.h"
#include "signals.h"
#include "uffdballoon.h"
#include "zapqueue.h"

#define MOST_HELD_BYTES (4ull << 20) /* that are looked at and zapped in one go */

enum uffdb_contents uffdb_contents(const struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	static const char zeros[UFFDB_PAGE];
	char page[UFFDB_PAGE];

	/* By /proc/PID/mem, which raises no fault in a window. */
	for (uint64_t at = hva; at < hva + len; at += UFFDB_PAGE) {
		ssize_t got = pread(engine->config.mem_fd, page, sizeof(page), (off_t)at);

		if (got < 0 && errno == EIO)
			return UFFDB_NOT_TO_BE_READ;
		if (got != sizeof(page) || memcmp(page, zeros, sizeof(page)) != 0)
			return UFFDB_WRITTEN_TO;
	}
	return UFFDB_ALL_ZEROS;
}

static uint64_t page_size(const struct uffdb_engine *engine, uint64_t hva)
{
	const struct uffdb_block *block = uffdb_ledger_block(engine->ledger, hva);

	return block ? uffdb_block_page(block) : UFFDB_PAGE;
}

static bool is_unused(const struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	return uffdb_ledger_test(engine->ledger, hva) > 0 &&
	       uffdb_holds_memory(engine->config.pagemap_fd, hva) > 0 &&
	       uffdb_is_protected(engine->config.pagemap_fd, hva) &&
	       uffdb_contents(engine, hva, len) == UFFDB_ALL_ZEROS;
}

/* Move what is still unused from the queue to @out, as much as may be held up for. */
static uint32_t take_unused(struct uffdb_engine *engine, struct uffdb_range *out, size_t room)
{
	uint64_t looked_at = 0;
	uint32_t nr = 0, first = 0;

	while (first < engine->nr_again && looked_at < MOST_HELD_BYTES && nr < room) {
		struct uffdb_range *range = &engine->again[first];
		uint64_t size = page_size(engine, range->start);

		if (is_unused(engine, range->start, size) &&
		    !uffdb_queue_range(out, &nr, room, range->start, size))
			break;
		looked_at += size;
		range->start += size;
		range->len -= size;
		if (!range->len)
			first++;
	}
	memmove(engine->again, engine->again + first,
		(engine->nr_again - first) * sizeof(*engine->again));
	engine->nr_again -= first;
	return nr;
}

size_t uffdb_engine_hold_zeros(struct uffdb_engine *engine, struct uffdb_range *out, size_t nr)
{
	uint32_t found = 0;

	if (!engine->nr_again)
		return 0;
	pthread_mutex_lock(&engine->control);
	while (!found && engine->nr_again) {
		engine->holds_loop = uffdb_hold_loop(engine);
		found = take_unused(engine, out, nr);
		if (!found && engine->holds_loop)
			uffdb_let_loop_go(engine);
	}
	if (!found)
		pthread_mutex_unlock(&engine->control);
	for (uint32_t i = 0; i < found; i++) {
		uffdb_count(&engine->counters.zapped_again, out[i].len / UFFDB_PAGE);
		uffdb_ledger_mark(engine->ledger, &out[i]); /* a huge page may keep it now */
	}
	return found;
}

void uffdb_engine_go_on(struct uffdb_engine *engine)
{
	if (engine->holds_loop)
		uffdb_let_loop_go(engine);
	engine->holds_loop = false;
	pthread_mutex_unlock(&engine->control);
}
