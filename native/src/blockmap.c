// SPDX-License-Identifier: GPL-2.0-or-later
/* A picture of guest memory: what the ledger, the windows and the page tables say of each 2 MiB. */
#include <errno.h>

#include "engine.h"
#include "ledger.h"
#include "pagemap.h"
#include "pages.h"
#include "touched.h"
#include "uffdballoon.h"
#include "windows.h"

#define BATCH 512

/* Cells of 2 MiB, the first of which begins at @origin, before the range or with it. */
struct grid {
	uint64_t origin;
	struct uffdb_cell *cells;
};

static void add_memory(const struct grid *grid, const struct uffdb_memory *memory)
{
	uint64_t at = memory->start, end = memory->start + memory->len;

	while (at < end) {
		uint64_t index = (at - grid->origin) / UFFDB_HUGE;
		uint64_t next = grid->origin + (index + 1) * UFFDB_HUGE;
		uint16_t pages;

		if (next > end)
			next = end;
		pages = (uint16_t)((next - at) / UFFDB_PAGE);
		grid->cells[index].resident += pages;
		if (memory->huge)
			grid->cells[index].huge += pages;
		at = next;
	}
}

static int walk_memory(const struct grid *grid, int pagemap_fd, uint64_t start, uint64_t end)
{
	struct uffdb_memory found[BATCH];

	while (start < end) {
		uint64_t next;
		int nr = uffdb_sized_memory(pagemap_fd, start, end, found, BATCH, &next);

		if (nr < 0)
			return nr;
		for (int i = 0; i < nr; i++)
			add_memory(grid, &found[i]);
		if (next <= start)
			break;
		start = next;
	}
	return 0;
}

static void add_known(const struct uffdb_engine *engine, struct uffdb_cell *cell, uint64_t start,
		      uint64_t end)
{
	uint64_t touched_ns = uffdb_touched_last(engine->events.touched, start, end - start);

	cell->pages += (uint16_t)((end - start) / UFFDB_PAGE);
	cell->ballooned += (uint16_t)uffdb_ledger_count(engine->ledger, start, end - start);
	/* It lies in two blocks of the host where the two are not aligned alike. */
	if (uffdb_windows_is_armed(engine->windows, start) ||
	    uffdb_windows_is_armed(engine->windows, end - 1))
		cell->armed = 1;
	if (touched_ns > cell->touched_ns)
		cell->touched_ns = touched_ns;
}

int uffdb_engine_cells(const struct uffdb_engine *engine, uint64_t hva, uint64_t len, uint64_t lead,
		       struct uffdb_cell *cells, size_t nr)
{
	const struct uffdb_block *block = uffdb_ledger_block(engine->ledger, hva);
	const struct grid grid = {hva - lead, cells};
	uint64_t end = hva + len;

	if (!block || !len || len > block->hva + block->size - hva)
		return -ENOENT;
	if (lead >= UFFDB_HUGE || hva % UFFDB_PAGE || len % UFFDB_PAGE || lead % UFFDB_PAGE ||
	    (lead + len + UFFDB_HUGE - 1) / UFFDB_HUGE > nr)
		return -EINVAL;
	for (uint64_t at = hva, i = 0; at < end; i++) {
		uint64_t next = grid.origin + (i + 1) * UFFDB_HUGE;

		if (next > end)
			next = end;
		add_known(engine, &cells[i], at, next);
		at = next;
	}
	if (engine->config.pagemap_fd < 0)
		return 0;
	return walk_memory(&grid, engine->config.pagemap_fd, hva, end);
}

static uint8_t state_of(const struct uffdb_cell *cell, uint64_t since_ns)
{
	if (cell->touched_ns && cell->touched_ns >= since_ns)
		return UFFDB_CELL_TOUCHED;
	if (cell->ballooned)
		return cell->ballooned == cell->pages ? UFFDB_CELL_BALLOONED : UFFDB_CELL_PARTLY;
	if (cell->armed)
		return UFFDB_CELL_ARMED;
	if (!cell->resident)
		return UFFDB_CELL_ABSENT;
	return 2 * cell->huge >= cell->resident ? UFFDB_CELL_OWNED_HUGE : UFFDB_CELL_OWNED_4K;
}

void uffdb_cell_states(const struct uffdb_cell *cells, size_t nr, uint64_t since_ns,
		       uint8_t *states)
{
	for (size_t i = 0; i < nr; i++)
		states[i] = state_of(&cells[i], since_ns);
}
