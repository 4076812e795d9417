// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A range has one userfaultfd at most. QEMU registers all of its RAM with one of its own for a
 * background snapshot (migration/ram.c, ram_write_tracking_start()), and as the destination of a
 * postcopy migration; where ours is there it gets EBUSY, and leaves the VM stopped. So ours goes
 * before, and comes back after. The plan of windows and the ledger stay as they are.
 */
#include <errno.h>
#include <stdatomic.h>

#include "engine.h"
#include "follow.h"
#include "ledger.h"
#include "mailbox.h"
#include "observe.h"
#include "pagemap.h"
#include "relay.h"
#include "settle.h"
#include "uffdballoon.h"
#include "windows.h"

/* Their windows are gone, and the kernel has woken them. */
static void let_all_go(struct uffdb_engine *engine, void *argument)
{
	const struct uffdb_block *blocks;
	size_t nr;

	(void)argument;
	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++)
		uffdb_let_go(engine, blocks[i].hva, blocks[i].size);
}

int uffdb_engine_yield(struct uffdb_engine *engine)
{
	int error = 0;

	pthread_mutex_lock(&engine->control);
	if (!atomic_load(&engine->yielded)) {
		atomic_store(&engine->yielded, true);
		error = uffdb_windows_lift(engine->windows);
		uffdb_call_on_loop(engine, let_all_go, NULL);
	}
	pthread_mutex_unlock(&engine->control);
	return error;
}

static void trap_zeros(struct uffdb_engine *engine, const struct uffdb_range *range, void *argument)
{
	(void)argument;
	uffdb_uffd_writeprotect(engine->config.uffd, range->start, range->len, true);
}

static void leave_to_guest(struct uffdb_engine *engine, const struct uffdb_range *range,
			   void *argument)
{
	int64_t *pages = argument;

	*pages += uffdb_ledger_clear(engine->ledger, range->start, range->len);
	uffdb_forget_reports(engine, range->start, range->len);
}

/*
 * On the loop, which answers nothing meanwhile: a page that is absent now is trapped, and one that
 * is there has been touched before.
 */
static void compare_with_memory(struct uffdb_engine *engine, void *argument)
{
	const struct uffdb_block *blocks;
	size_t nr;

	blocks = uffdb_ledger_blocks(engine->ledger, &nr);
	for (size_t i = 0; i < nr; i++) {
		const struct uffdb_range whole = {blocks[i].hva, blocks[i].size};

		/* An older kernel cannot tell zero pages: they hold memory for it. */
		if (engine->config.write_protect)
			uffdb_in_ballooned(engine, &whole, uffdb_loose_zero_pages, trap_zeros,
					   NULL);
		uffdb_in_ballooned(engine, &whole, uffdb_resident, leave_to_guest, argument);
	}
}

static int64_t take_up(struct uffdb_engine *engine)
{
	int error = uffdb_windows_restore(engine->windows);
	int64_t pages = 0;

	if (error)
		return error;
	if (engine->config.pagemap_fd >= 0)
		uffdb_call_on_loop(engine, compare_with_memory, &pages);
	atomic_store(&engine->yielded, false);
	if (pages)
		uffdb_windows_note_all(engine->windows);
	return pages;
}

int64_t uffdb_engine_take_up(struct uffdb_engine *engine)
{
	int64_t pages = 0;

	pthread_mutex_lock(&engine->control);
	if (atomic_load(&engine->yielded))
		pages = take_up(engine);
	pthread_mutex_unlock(&engine->control);
	return pages;
}

bool uffdb_engine_yielded(const struct uffdb_engine *engine)
{
	return atomic_load(&engine->yielded);
}

static void yield_now(void *engine)
{
	/* What could not be let go shows when QEMU tells that it failed. */
	uffdb_engine_yield(engine);
}

void uffdb_engine_yield_at_migration(struct uffdb_engine *engine, struct uffdb_relay *relay,
				     bool yields)
{
	uffdb_relay_on_migration(relay, yields ? yield_now : NULL, engine);
}
