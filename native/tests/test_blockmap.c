// SPDX-License-Identifier: GPL-2.0-or-later
/* What a picture of memory shows, on this process's own. */
#include "engine_setup.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#define BLOCKS 6u

static void set_up_blocks(struct setup *setup)
{
	make_engine(setup, BLOCKS * HUGE,
		    (struct uffdb_engine_config){
			    .nr_rungs = 1,
			    .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
		    });
	CHECK(!uffdb_engine_start(setup->engine));
	CHECK(!madvise(setup->memory + HUGE, (BLOCKS - 1) * HUGE, MADV_NOHUGEPAGE));
}

static void look(const struct setup *setup, struct uffdb_cell *cells, uint64_t since_ns,
		 uint8_t *states)
{
	memset(cells, 0, BLOCKS * sizeof(*cells));
	CHECK(!uffdb_engine_cells(setup->engine, address(setup), BLOCKS * HUGE, 0, cells, BLOCKS));
	uffdb_cell_states(cells, BLOCKS, since_ns, states);
}

static void each_state_is_told_from_the_others(void)
{
	uint8_t states[BLOCKS];
	struct uffdb_cell cells[BLOCKS];
	struct setup setup;

	set_up_blocks(&setup);
	memset(setup.memory, 1, HUGE + PAGE);
	inflate(&setup, 2 * HUGE, HUGE);
	memset(setup.memory + 3 * HUGE, 1, HUGE);
	inflate(&setup, 3 * HUGE + PAGE, 3 * PAGE);
	inflate(&setup, 4 * HUGE, PAGE);
	setup.memory[4 * HUGE] = 1;

	look(&setup, cells, 1, states);
	CHECK(cells[0].pages == HUGE / PAGE && cells[0].resident == HUGE / PAGE);
	CHECK(states[1] == UFFDB_CELL_OWNED_4K);
	CHECK(cells[1].resident == 1 && !cells[1].huge && !cells[1].armed);
	CHECK(states[2] == UFFDB_CELL_BALLOONED);
	CHECK(cells[2].ballooned == HUGE / PAGE && !cells[2].resident && cells[2].armed);
	CHECK(states[3] == UFFDB_CELL_PARTLY);
	CHECK(cells[3].ballooned == 3 && cells[3].resident == HUGE / PAGE - 3);
	CHECK(states[4] == UFFDB_CELL_TOUCHED && cells[4].touched_ns && !cells[4].ballooned);
	CHECK(states[5] == UFFDB_CELL_ABSENT && !cells[5].touched_ns && !cells[5].armed);

	/* The touch is long ago; the window is there until it is tidied away. */
	look(&setup, cells, cells[4].touched_ns + 1, states);
	CHECK(states[4] == UFFDB_CELL_ARMED);
	CHECK(uffdb_engine_tidy(setup.engine) == 1);
	look(&setup, cells, cells[4].touched_ns + 1, states);
	CHECK(states[4] == UFFDB_CELL_OWNED_4K);
	tear_down(&setup);
}

static void a_huge_page_is_told_from_small_ones(void)
{
	uint8_t states[BLOCKS];
	struct uffdb_cell cells[BLOCKS];
	struct setup setup;
	bool collapsed;

	set_up_blocks(&setup);
	memset(setup.memory, 1, HUGE);
	collapsed = !madvise(setup.memory, HUGE, MADV_COLLAPSE);
	look(&setup, cells, 1, states);
	/* Where it was not, THP may have made it a huge page all the same, or not. */
	CHECK(!collapsed || cells[0].huge == HUGE / PAGE);
	CHECK(states[0] == (cells[0].huge ? UFFDB_CELL_OWNED_HUGE : UFFDB_CELL_OWNED_4K));
	tear_down(&setup);
}

/* Cells that begin half a block later than the host's: nothing is lost or counted twice. */
static void cells_need_not_lie_as_the_hosts_blocks_do(void)
{
	struct uffdb_cell cells[BLOCKS + 1] = {0};
	uint64_t half = HUGE / 2, pages = 0, resident = 0;
	struct setup setup;

	set_up_blocks(&setup);
	memset(setup.memory + HUGE, 1, HUGE);
	inflate(&setup, 3 * HUGE, HUGE);
	/* In two pieces: the second adds to the cell in which the first ended. */
	CHECK(!uffdb_engine_cells(setup.engine, address(&setup), HUGE, half, cells, BLOCKS + 1));
	CHECK(!uffdb_engine_cells(setup.engine, address(&setup) + HUGE, (BLOCKS - 1) * HUGE, half,
				  cells + 1, BLOCKS));
	for (size_t i = 0; i <= BLOCKS; i++) {
		pages += cells[i].pages;
		resident += cells[i].resident;
	}
	CHECK(pages == BLOCKS * HUGE / PAGE && resident == HUGE / PAGE);
	CHECK(cells[0].pages == half / PAGE && cells[BLOCKS].pages == half / PAGE);
	CHECK(cells[1].resident == half / PAGE && cells[2].resident == half / PAGE);
	CHECK(cells[3].ballooned == half / PAGE && cells[4].ballooned == half / PAGE);
	CHECK(cells[3].armed && cells[4].armed && !cells[2].armed && !cells[5].armed);
	tear_down(&setup);
}

static void what_is_no_ram_or_does_not_fit_is_refused(void)
{
	struct uffdb_cell cells[BLOCKS] = {0};
	struct setup setup;

	set_up_blocks(&setup);
	CHECK(uffdb_engine_cells(setup.engine, 0x1000, HUGE, 0, cells, BLOCKS) == -ENOENT);
	CHECK(uffdb_engine_cells(setup.engine, address(&setup), (BLOCKS + 1) * HUGE, 0, cells,
				 BLOCKS) == -ENOENT);
	CHECK(uffdb_engine_cells(setup.engine, address(&setup), BLOCKS * HUGE, PAGE, cells,
				 BLOCKS) == -EINVAL);
	CHECK(uffdb_engine_cells(setup.engine, address(&setup), HUGE, HUGE, cells, BLOCKS) ==
	      -EINVAL);
	CHECK(!cells[0].pages);
	tear_down(&setup);
}

static void blocks_are_tallied_by_what_is_ballooned_of_them(void)
{
	struct uffdb_tally tally;
	struct setup setup;

	set_up_blocks(&setup);
	inflate(&setup, HUGE, HUGE);
	inflate(&setup, 3 * HUGE, PAGE);
	inflate(&setup, 5 * HUGE - PAGE, 2 * PAGE);
	CHECK(!uffdb_ledger_tally(setup.ledger, address(&setup), &tally));
	CHECK(tally.whole == 1 && tally.broken == 3 && tally.untouched == 2);
	CHECK(uffdb_ledger_count(setup.ledger, address(&setup), BLOCKS * HUGE) == 515);
	CHECK(uffdb_ledger_count(setup.ledger, address(&setup) + HUGE + PAGE, PAGE) == 1);
	CHECK(!uffdb_ledger_count(setup.ledger, 0x1000, PAGE));
	tear_down(&setup);
}

static void blocks_count_as_fine_when_an_aligned_piece_is_ballooned_in_part(void)
{
	struct uffdb_ledger *before;
	struct uffdb_range all;
	struct setup setup;
	struct uffdb_block block;

	set_up_blocks(&setup);
	all = (struct uffdb_range){address(&setup), BLOCKS * HUGE};
	block = (struct uffdb_block){.hva = all.start, .size = all.len};
	CHECK(!uffdb_ledger_create(&block, 1, &before));
	inflate(&setup, 0, HUGE);
	inflate(&setup, HUGE, 16 * PAGE);
	inflate(&setup, 2 * HUGE + PAGE, PAGE);
	CHECK(uffdb_ledger_fine(setup.ledger, NULL, &all, 9) == 2);
	CHECK(uffdb_ledger_fine(setup.ledger, NULL, &all, 5) == 2);
	CHECK(uffdb_ledger_fine(setup.ledger, NULL, &all, 4) == 1);
	CHECK(uffdb_ledger_fine(setup.ledger, NULL, &all, 0) == 0);
	CHECK(uffdb_ledger_fine(setup.ledger, before, &all, 9) == 0);
	uffdb_ledger_copy(setup.ledger, before);
	CHECK(uffdb_ledger_fine(setup.ledger, before, &all, 9) == 2);
	inflate(&setup, HUGE + 16 * PAGE, PAGE);
	CHECK(uffdb_ledger_fine(setup.ledger, before, &all, 9) == 1);
	uffdb_ledger_destroy(before);
	tear_down(&setup);
}

int main(void)
{
	each_state_is_told_from_the_others();
	a_huge_page_is_told_from_small_ones();
	cells_need_not_lie_as_the_hosts_blocks_do();
	what_is_no_ram_or_does_not_fit_is_refused();
	blocks_are_tallied_by_what_is_ballooned_of_them();
	blocks_count_as_fine_when_an_aligned_piece_is_ballooned_in_part();
	return 0;
}
