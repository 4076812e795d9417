// SPDX-License-Identifier: GPL-2.0-or-later
/* Huge pages that a driver gives up in pieces are given back, and nothing that it has kept is. */
#include <sched.h>

#include "log_writer.h"

/* With MISSING_HUGETLBFS, MISSING_SHMEM, MINOR_HUGETLBFS, MINOR_SHMEM, WP_HUGETLBFS_SHMEM */
#define WANTED_SHARED (WANTED | 0x30u | 0x600u | 0x1000u)
#define PIECES	      (HUGE / PAGE)
#define STRIDE	      37 /* and PIECES have no common divisor */
#define ROUNDS	      300
#define LATE_NS	      (3600ull * 1000000000) /* that the monitor may be late: longer than a test */

static bool huge;

struct gathering {
	struct setup setup;
	struct uffdb_trace *trace;
	struct log_file log;
	struct uffdb_memory_file file;
};

static void map_ram(struct gathering *gathering)
{
	struct setup *setup = &gathering->setup;
	int fd = memfd_create("ram", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));

	CHECK(fd >= 0 && !ftruncate(fd, SIZE));
	setup->memory = map_aligned(SIZE);
	CHECK(mmap(setup->memory, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) !=
	      MAP_FAILED);
	gathering->file = (struct uffdb_memory_file){.fd = fd, .hva = address(setup), .len = SIZE};
}

static void begin_with(struct gathering *gathering, struct uffdb_engine_config config)
{
	struct setup *setup = &gathering->setup;

	gathering->log = make_log();
	open_fds(setup, WANTED_SHARED);
	map_ram(gathering);
	gathering->trace = read_log(&gathering->log, address(setup), SIZE);
	config.write_protect_shared = config.minor_shmem = config.minor_hugetlbfs = true;
	config.nr_rungs = 1;
	config.rungs[0].kind = UFFDB_RUNG_OBSERVE;
	config.observing = UFFDB_OBSERVE_TRACE;
	config.trace = gathering->trace;
	config.memory_files = &gathering->file;
	config.nr_memory_files = 1;
	make_engine_over(setup, SIZE, UFFDB_BLOCK_SHARED | UFFDB_BLOCK_HUGETLB, config);
	memset(setup->memory, 1, SIZE);
	CHECK(!uffdb_engine_start(setup->engine));
}

static void begin(struct gathering *gathering)
{
	begin_with(gathering, (struct uffdb_engine_config){0});
}

static void end(struct gathering *gathering)
{
	tear_down(&gathering->setup);
	uffdb_trace_destroy(gathering->trace);
	end_log(&gathering->log);
	munmap(gathering->setup.memory, SIZE);
	close(gathering->file.fd);
}

static void follow_to_the_end(struct gathering *gathering)
{
	int more;

	do {
		more = uffdb_engine_follow(gathering->setup.engine);
		CHECK(more >= 0);
	} while (more);
}

static uint64_t held_blocks(const struct gathering *gathering)
{
	struct stat of;

	CHECK(!fstat(gathering->file.fd, &of));
	return (uint64_t)of.st_blocks * 512 / HUGE;
}

static uint64_t ballooned_pages(const struct gathering *gathering)
{
	return uffdb_ledger_pages(gathering->setup.ledger);
}

static void name_pieces(struct gathering *gathering, uint64_t block, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		CHECK(log_page(&gathering->log, block * PIECES + i * STRIDE % PIECES));
}

static void give(struct gathering *gathering, uint64_t block, uint64_t from, uint64_t to)
{
	name_pieces(gathering, block, from, to);
	log_actual(&gathering->log, gathering->log.actual + to - from);
	follow_to_the_end(gathering);
}

static void take_back(struct gathering *gathering, uint64_t block, uint64_t from, uint64_t to)
{
	name_pieces(gathering, block, from, to);
	log_actual(&gathering->log, gathering->log.actual - (to - from));
	follow_to_the_end(gathering);
}

static bool has_its_bytes(const struct gathering *gathering, uint64_t block, uint8_t byte)
{
	for (uint64_t at = block * HUGE; at < (block + 1) * HUGE; at += PAGE)
		if (gathering->setup.memory[at] != byte)
			return false;
	return true;
}

static void a_block_is_given_back_when_all_of_it_is_given(void)
{
	struct gathering gathering;

	begin(&gathering);
	give(&gathering, 1, 0, PIECES - 1);
	CHECK(held_blocks(&gathering) == SIZE / HUGE && !ballooned_pages(&gathering));
	CHECK(stats_of(&gathering.setup).pieces == PIECES - 1);
	CHECK(has_its_bytes(&gathering, 1, 1));
	give(&gathering, 1, PIECES - 1, PIECES);
	CHECK(held_blocks(&gathering) == SIZE / HUGE - 1 && ballooned_pages(&gathering) == PIECES);
	CHECK(stats_of(&gathering.setup).observed_inflated == PIECES);
	CHECK(stats_of(&gathering.setup).pieces == 0 && stats_of(&gathering.setup).windows == 1);
	CHECK(stats_of(&gathering.setup).failed == 0);
	for (uint64_t block = 0; block < SIZE / HUGE; block++)
		CHECK(block == 1 || has_its_bytes(&gathering, block, 1));
	CHECK(stats_of(&gathering.setup).violations == 0);
	gathering.setup.memory[HUGE + 5] = 2;
	CHECK(stats_of(&gathering.setup).violations == 1 && !ballooned_pages(&gathering));
	CHECK(held_blocks(&gathering) == SIZE / HUGE);
	end(&gathering);
}

static void what_is_taken_back_is_the_guests_and_zeros(void)
{
	struct gathering gathering;

	begin(&gathering);
	give(&gathering, 2, 0, PIECES);
	CHECK(held_blocks(&gathering) == SIZE / HUGE - 1);
	take_back(&gathering, 2, 7, 8);
	CHECK(!ballooned_pages(&gathering) && stats_of(&gathering.setup).pieces == PIECES - 1);
	/* It is absent still: where no huge page is left, the touch has to wait for one. */
	CHECK(stats_of(&gathering.setup).windows == 1);
	CHECK(has_its_bytes(&gathering, 2, 0));
	follow_to_the_end(&gathering);
	CHECK(stats_of(&gathering.setup).windows == 0);
	memset(gathering.setup.memory + 2 * HUGE, 3, HUGE);
	/* Given once more it is whole again. */
	give(&gathering, 2, 7, 8);
	CHECK(held_blocks(&gathering) == SIZE / HUGE - 1 && ballooned_pages(&gathering) == PIECES);
	take_back(&gathering, 2, 0, PIECES);
	CHECK(has_its_bytes(&gathering, 2, 0) && stats_of(&gathering.setup).pieces == 0);
	CHECK(stats_of(&gathering.setup).violations == 0);
	CHECK(stats_of(&gathering.setup).observed_deflated == 2 * PIECES);
	end(&gathering);
}

static void what_the_driver_has_not_counted_is_kept(void)
{
	struct gathering gathering;

	begin(&gathering);
	name_pieces(&gathering, 0, 0, PIECES);
	follow_to_the_end(&gathering);
	CHECK(!ballooned_pages(&gathering) && has_its_bytes(&gathering, 0, 1));
	log_actual(&gathering.log, 3); /* which is none of what it can have been */
	follow_to_the_end(&gathering);
	CHECK(!ballooned_pages(&gathering) && has_its_bytes(&gathering, 0, 1));
	log_actual(&gathering.log, PIECES);
	follow_to_the_end(&gathering);
	CHECK(ballooned_pages(&gathering) == PIECES && held_blocks(&gathering) == SIZE / HUGE - 1);
	end(&gathering);
}

static void what_may_have_been_taken_back_in_lost_lines_is_kept(void)
{
	struct gathering gathering;

	begin(&gathering);
	give(&gathering, 0, 0, PIECES);
	give(&gathering, 1, 0, PIECES - 1);
	/* Half a line, and another on top of it: deflates may be among what is gone. */
	CHECK(write_text(&gathering.log, "virtio_balloon_handle_output section na"));
	CHECK(log_page(&gathering.log, 1 * PIECES + (PIECES - 1) * STRIDE % PIECES));
	log_actual(&gathering.log, gathering.log.actual + 1);
	follow_to_the_end(&gathering);
	CHECK(stats_of(&gathering.setup).lost_records > 0);
	CHECK(ballooned_pages(&gathering) == PIECES && has_its_bytes(&gathering, 1, 1));
	/* Of what was whole before, no touch is held against the guest. */
	gathering.setup.memory[5] = 2;
	CHECK(stats_of(&gathering.setup).violations == 0 &&
	      stats_of(&gathering.setup).doubtful == 1);
	take_back(&gathering, 1, 0, PIECES);
	give(&gathering, 1, 0, PIECES);
	CHECK(ballooned_pages(&gathering) == PIECES && held_blocks(&gathering) == SIZE / HUGE - 1);
	CHECK(gathering.setup.memory[5] == 2);
	end(&gathering);
}

/* All is as before but the time that the monitor may take to tell of a reset. */
static void begin_to_wait(struct gathering *gathering)
{
	begin_with(gathering, (struct uffdb_engine_config){.reset_delay_ns = LATE_NS});
	name_pieces(gathering, 3, 0, PIECES);
	log_actual(&gathering->log, PIECES);
	CHECK(uffdb_engine_follow(gathering->setup.engine) > 0);
	CHECK(uffdb_engine_follow(gathering->setup.engine) > 0);
	CHECK(ballooned_pages(gathering) == PIECES && held_blocks(gathering) == SIZE / HUGE);
}

static void what_is_taken_back_before_it_is_punched_keeps_its_bytes(void)
{
	struct gathering gathering;

	begin_to_wait(&gathering);
	CHECK(has_its_bytes(&gathering, 3, 1));
	take_back(&gathering, 3, 4, 5);
	gathering.setup.memory[3 * HUGE] = 1;
	CHECK(!ballooned_pages(&gathering) && has_its_bytes(&gathering, 3, 1));
	CHECK(stats_of(&gathering.setup).violations == 0);
	end(&gathering);
}

static void what_is_written_to_before_it_is_punched_is_judged_and_kept(void)
{
	struct gathering gathering;

	begin_to_wait(&gathering);
	gathering.setup.memory[3 * HUGE + 9] = 8;
	CHECK(stats_of(&gathering.setup).violations == 1 && !ballooned_pages(&gathering));
	follow_to_the_end(&gathering);
	CHECK(has_its_bytes(&gathering, 3, 1) && gathering.setup.memory[3 * HUGE + 9] == 8);
	end(&gathering);
}

static void a_reset_before_it_is_punched_keeps_its_bytes(void)
{
	struct gathering gathering;

	begin_to_wait(&gathering);
	CHECK(!uffdb_engine_reset(gathering.setup.engine, 0));
	follow_to_the_end(&gathering);
	CHECK(!ballooned_pages(&gathering) && held_blocks(&gathering) == SIZE / HUGE);
	memset(gathering.setup.memory + 3 * HUGE, 1, HUGE);
	CHECK(has_its_bytes(&gathering, 3, 1));
	CHECK(stats_of(&gathering.setup).violations == 0);
	end(&gathering);
}

/* It is not in the ledger any more, and in the driver's balloon all the same. */
static void what_was_touched_is_kept_until_all_of_it_is_given_anew(void)
{
	struct gathering gathering;

	begin(&gathering);
	give(&gathering, 0, 0, PIECES);
	memset(gathering.setup.memory, 4, HUGE);
	take_back(&gathering, 0, 0, 1);
	give(&gathering, 0, 0, 1);
	CHECK(!ballooned_pages(&gathering) && has_its_bytes(&gathering, 0, 4));
	take_back(&gathering, 0, 0, PIECES);
	CHECK(has_its_bytes(&gathering, 0, 4));
	give(&gathering, 0, 0, PIECES);
	CHECK(ballooned_pages(&gathering) == PIECES && held_blocks(&gathering) == SIZE / HUGE - 1);
	end(&gathering);
}

/*
 * Each time a block is punched, or about to be, a piece of it is taken back and written to at once;
 * what is taken back last has been the guest's for a while.
 */
static void a_guest_that_never_rests_keeps_what_it_took_back(void)
{
	struct gathering gathering;

	begin_with(&gathering, (struct uffdb_engine_config){.follow = true});
	for (uint64_t round = 0; round < ROUNDS; round++) {
		uint64_t block = round % (SIZE / HUGE), piece = round * STRIDE % PIECES;
		volatile uint8_t *at =
			gathering.setup.memory + block * HUGE + piece * STRIDE % PIECES * PAGE;
		uint8_t byte = (uint8_t)(round % 250 + 2);

		name_pieces(&gathering, block, 0, PIECES);
		log_actual(&gathering.log, PIECES);
		/* As soon as it is in the balloon, at the latest; or before. */
		while (round % 3 && !ballooned_pages(&gathering))
			sched_yield();
		while (round % 3 == 2 && held_blocks(&gathering) == SIZE / HUGE)
			sched_yield();
		name_pieces(&gathering, block, piece, piece + 1);
		log_actual(&gathering.log, PIECES - 1);
		*at = byte;
		name_pieces(&gathering, block, 0, piece);
		name_pieces(&gathering, block, piece + 1, PIECES);
		log_actual(&gathering.log, 0);
		memset(gathering.setup.memory + block * HUGE + HUGE - PAGE, 1, 1);
		CHECK(*at == byte || at == gathering.setup.memory + block * HUGE + HUGE - PAGE);
	}
	CHECK(stats_of(&gathering.setup).violations == 0 && !ballooned_pages(&gathering));
	CHECK(stats_of(&gathering.setup).observed_inflated > 0);
	CHECK(stats_of(&gathering.setup).observed_inflated ==
	      stats_of(&gathering.setup).observed_deflated);
	end(&gathering);
}

static void all(void)
{
	a_block_is_given_back_when_all_of_it_is_given();
	what_is_taken_back_is_the_guests_and_zeros();
	what_the_driver_has_not_counted_is_kept();
	what_may_have_been_taken_back_in_lost_lines_is_kept();
	what_is_taken_back_before_it_is_punched_keeps_its_bytes();
	what_is_written_to_before_it_is_punched_is_judged_and_kept();
	a_reset_before_it_is_punched_keeps_its_bytes();
	what_was_touched_is_kept_until_all_of_it_is_given_anew();
	a_guest_that_never_rests_keeps_what_it_took_back();
}

/* With any argument: on huge pages, which whoever gives it has reserved; else they are played. */
int main(int argc, char **argv)
{
	(void)argv;
	huge = argc > 1;
	all();
	return 0;
}
