// SPDX-License-Identifier: GPL-2.0-or-later
/* Windows that trap nothing, far above the floor: real userfaultfd, on this process's memory. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "engine_setup.h"

#define BLOCKS	  96ull /* of 2 MiB */
#define BALLOONED (BLOCKS - 4)
#define RUN	  16ull /* blocks that go slack by one touch */
#define MARGIN	  8ull	/* and that are trapped above the floor, always */

static uint32_t by; /* every test that traces is run with each source of the trace */

struct slack {
	struct setup setup;
	struct uffdb_trace *trace;
};

static const struct uffdb_terms free_to_take = {.kind = UFFDB_CONTRACT_CAP, .count_reported = 1};

static struct uffdb_terms with_floor(uint64_t blocks)
{
	struct uffdb_terms terms = free_to_take;

	terms.floor_bytes = blocks * HUGE;
	return terms;
}

static int tracepoint_id(int tracefs, const char *name)
{
	char path[128], text[16] = "";
	int fd;

	snprintf(path, sizeof(path), "events/syscalls/%s/id", name);
	fd = openat(tracefs, path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	return atoi(text);
}

static struct uffdb_trace *make_trace(void)
{
	struct uffdb_trace_config config = {.pid = getpid(), .ring_bytes = 1 << 20, .by = by};
	int tracefs = uffdb_tracefs_open(), error;
	struct uffdb_trace *trace;

	if (tracefs < 0) {
		fprintf(stderr, "no tracefs here: %s\n", strerror(-tracefs));
		exit(SKIPPED);
	}
	config.enter_madvise = tracepoint_id(tracefs, "sys_enter_madvise");
	config.enter_fallocate = tracepoint_id(tracefs, "sys_enter_fallocate");
	close(tracefs);
	error = uffdb_trace_create(&config, &trace);
	if (error == -EACCES || error == -EPERM || error == -EOPNOTSUPP) {
		fprintf(stderr, "this trace cannot be had here: %s\n", strerror(-error));
		exit(SKIPPED);
	}
	CHECK(!error);
	return trace;
}

static uint8_t byte_of(uint64_t page)
{
	return (uint8_t)(page % 251 + 1);
}

static void fill(const struct setup *setup, uint64_t first, uint64_t last)
{
	for (uint64_t page = first * HUGE / PAGE; page < last * HUGE / PAGE; page++)
		memset(setup->memory + page * PAGE, byte_of(page), PAGE);
}

static void check_filled(const struct setup *setup, uint64_t first, uint64_t last)
{
	for (uint64_t page = first * HUGE / PAGE; page < last * HUGE / PAGE; page++)
		for (uint64_t i = 0; i < PAGE; i += 512)
			CHECK(setup->memory[page * PAGE + i] == byte_of(page));
}

static uint64_t ballooned(const struct setup *setup)
{
	return uffdb_ledger_pages(setup->ledger) * PAGE / HUGE;
}

/* Blocks that the balloon does not hold, by the page tables. */
static uint64_t resident_bytes(const struct setup *setup)
{
	uint64_t at = address(setup), end = at + BALLOONED * HUGE, bytes = 0;
	struct uffdb_range found[64];

	while (at < end) {
		uint64_t next = end;
		int nr = uffdb_resident(setup->pagemap, at, end, found, 64, &next);

		CHECK(nr >= 0);
		for (int i = 0; i < nr; i++)
			bytes += found[i].len;
		at = next;
	}
	return bytes;
}

static void begin(struct slack *slack, struct uffdb_engine_config config)
{
	struct setup *setup = &slack->setup;

	slack->trace = config.observing == UFFDB_OBSERVE_TRACE ? make_trace() : NULL;
	config.trace = slack->trace;
	config.slackens = true;
	if (!config.nr_rungs) {
		config.nr_rungs = 1;
		config.rungs[0].kind = UFFDB_RUNG_OBSERVE;
	}
	make_engine(setup, BLOCKS * HUGE, config);
	CHECK(!uffdb_engine_start(setup->engine));
	if (!stats_of(setup).slackens) {
		fprintf(stderr, "no PAGEMAP_SCAN here\n");
		exit(SKIPPED);
	}
	CHECK(!madvise(setup->memory, BLOCKS * HUGE, MADV_HUGEPAGE));
	fill(setup, 0, BLOCKS);
}

static void give_all_up(struct slack *slack)
{
	struct setup *setup = &slack->setup;

	if (!slack->trace) {
		inflate(setup, 0, BALLOONED * HUGE);
		return;
	}
	CHECK(!madvise(setup->memory, BALLOONED * HUGE, MADV_DONTNEED));
	while (stats_of(setup).armed_bytes < BALLOONED * HUGE)
		CHECK(uffdb_engine_follow(setup->engine) >= 0);
}

static void begin_given_up(struct slack *slack, struct uffdb_engine_config config)
{
	begin(slack, config);
	give_all_up(slack);
	CHECK(ballooned(&slack->setup) == BALLOONED);
}

static void end(struct slack *slack)
{
	check_filled(&slack->setup, BALLOONED, BLOCKS);
	tear_down(&slack->setup);
	if (slack->trace)
		uffdb_trace_destroy(slack->trace);
}

static void far_above_the_floor_a_touch_in_many_is_trapped(void)
{
	struct slack slack;
	struct setup *setup = &slack.setup;
	struct uffdb_stats stats;

	begin_given_up(&slack, (struct uffdb_engine_config){.terms = free_to_take});
	setup->memory[0] = 1;
	stats = stats_of(setup);
	CHECK(stats.granted == 1 && stats.unarmed_bytes == RUN * HUGE);
	CHECK(stats.armed_bytes == (BALLOONED - RUN) * HUGE);
	fill(setup, 0, BALLOONED);
	CHECK(uffdb_engine_look(setup->engine) >= 0);
	stats = stats_of(setup);
	/* Where only the margin is left, a block at a time. */
	CHECK(stats.granted <= BALLOONED / RUN + 1 + MARGIN + 1);
	CHECK(stats.violations == 0 && ballooned(setup) == 0);
	CHECK(stats.taken_unseen_bytes > (BALLOONED - MARGIN - 1) * HUGE);
	CHECK(stats.unarmed_bytes == 0);
	check_filled(setup, 0, BALLOONED);
	CHECK(uffdb_engine_tidy(setup->engine) >= 0 && stats_of(setup).armed_bytes == 0);
	end(&slack);
}

static void what_is_slack_counts_as_taken(void)
{
	const uint64_t floor = BALLOONED - MARGIN - 4;
	struct slack slack;
	struct setup *setup = &slack.setup;

	begin_given_up(&slack, (struct uffdb_engine_config){.terms = with_floor(floor)});
	setup->memory[0] = 1;
	CHECK(stats_of(setup).unarmed_bytes == 4 * HUGE); /* all there is above the margin */
	/* The last of them; nothing of the others was taken, and is looked at for this one. */
	setup->memory[(BALLOONED - 1) * HUGE] = 1;
	CHECK(stats_of(setup).granted == 2 && stats_of(setup).violations == 0);
	CHECK(ballooned(setup) >= floor && stats_of(setup).unarmed_bytes <= 4 * HUGE);
	fill(setup, 0, BALLOONED - floor - 1);
	CHECK(stats_of(setup).violations == 0);
	fill(setup, BALLOONED - floor - 1, BALLOONED - floor + 1);
	CHECK(stats_of(setup).violations > 0);
	CHECK(stats_of(setup).unarmed_bytes == 0);
	end(&slack);
}

static void another_contract_finds_all_trapped(void)
{
	const struct uffdb_terms told = {.kind = UFFDB_CONTRACT_TOLD};
	struct slack slack;
	struct setup *setup = &slack.setup;

	begin_given_up(&slack, (struct uffdb_engine_config){.terms = free_to_take});
	fill(setup, 0, 2);
	CHECK(uffdb_engine_set_policy(setup->engine, NULL, 0, &told) == 0);
	CHECK(stats_of(setup).unarmed_bytes == 0);
	CHECK(ballooned(setup) == BALLOONED - 2 && stats_of(setup).granted == 1);
	fill(setup, 0, 2);
	CHECK(stats_of(setup).violations == 0);
	setup->memory[3 * HUGE] = 1;
	CHECK(stats_of(setup).violations == 1);
	check_filled(setup, 0, 2);
	end(&slack);
}

/* By a huge zero page, where there are huge pages. */
static void what_was_only_read_is_trapped_when_it_is_written(void)
{
	struct slack slack;
	struct setup *setup = &slack.setup;
	const struct uffdb_terms told = {.kind = UFFDB_CONTRACT_TOLD};

	begin_given_up(&slack, (struct uffdb_engine_config){.terms = free_to_take});
	setup->memory[0] = 1;
	for (uint64_t page = HUGE / PAGE; page < 3 * HUGE / PAGE; page++)
		CHECK(setup->memory[page * PAGE] == 0);
	CHECK(uffdb_engine_set_policy(setup->engine, NULL, 0, &told) == 0);
	CHECK(ballooned(setup) >= BALLOONED - 1);
	CHECK(uffdb_ledger_count(setup->ledger, address(setup) + HUGE, 2 * HUGE) == 1024);
	setup->memory[HUGE + 5 * PAGE] = 1;
	setup->memory[2 * HUGE] = 1;
	CHECK(stats_of(setup).violations == 2);
	end(&slack);
}

static void what_the_guest_owns_is_taken_off_nobody(void)
{
	struct slack slack;
	struct setup *setup = &slack.setup;

	begin_given_up(&slack, (struct uffdb_engine_config){.terms = free_to_take});
	fill(setup, 0, 1);
	/* The operator takes memory that was just taken back: it is there until it is zapped. */
	CHECK(uffdb_engine_inflate(setup->engine, address(setup), HUGE) >= 511);
	CHECK(uffdb_engine_look(setup->engine) == 0);
	CHECK(ballooned(setup) == BALLOONED);
	CHECK(uffdb_engine_deflate(setup->engine, address(setup), 4 * HUGE) == 4 * 512);
	check_filled(setup, 0, 1);
	fill(setup, 1, 4);
	CHECK(stats_of(setup).granted == 1 && stats_of(setup).violations == 0);
	check_filled(setup, 0, 4);
	end(&slack);
}

static void what_is_given_up_again_is_in_the_balloon_again(void)
{
	struct slack slack;
	struct setup *setup = &slack.setup;

	begin_given_up(&slack, (struct uffdb_engine_config){.terms = free_to_take,
							    .observing = UFFDB_OBSERVE_TRACE});
	for (int round = 0; round < 20; round++) {
		fill(setup, 0, 8);
		CHECK(!madvise(setup->memory, 4 * HUGE, MADV_DONTNEED));
		CHECK(uffdb_engine_follow(setup->engine) >= 0);
		CHECK(stats_of(setup).unarmed_bytes == 0);
		CHECK(ballooned(setup) == BALLOONED - 4);
		check_filled(setup, 4, 8);
		CHECK(setup->memory[HUGE] == 0);
		CHECK(!madvise(setup->memory, 8 * HUGE, MADV_DONTNEED));
		while (ballooned(setup) < BALLOONED ||
		       stats_of(setup).armed_bytes < BALLOONED * HUGE)
			CHECK(uffdb_engine_follow(setup->engine) >= 0);
	}
	CHECK(stats_of(setup).violations == 0 && resident_bytes(setup) == 0);
	end(&slack);
}

static void a_quiet_guest_is_trapped_again(void)
{
	struct slack slack;
	struct setup *setup = &slack.setup;
	uint64_t granted;

	begin_given_up(&slack, (struct uffdb_engine_config){.terms = free_to_take, .follow = true});
	fill(setup, 3, 5);
	while (stats_of(setup).unarmed_bytes)
		usleep(1000);
	CHECK(ballooned(setup) == BALLOONED - 2);
	granted = stats_of(setup).granted;
	setup->memory[0] = 1;
	CHECK(stats_of(setup).granted == granted + 1);
	check_filled(setup, 3, 5);
	end(&slack);
}

static void with_a_ledger_for_others_all_is_trapped_always(void)
{
	struct setup setup;
	struct uffdb_engine_config config = {
		.terms = free_to_take, .nr_rungs = 1, .slackens = true, .ring_records = 64};
	struct uffdb_block block = {.size = HUGE};
	int memory = memfd_create("ledger", MFD_CLOEXEC);

	CHECK(memory >= 0);
	open_fds(&setup, WANTED);
	setup.memory = map_aligned(HUGE);
	block.hva = address(&setup);
	CHECK(!uffdb_ledger_create_in(memory, &block, 1, &setup.ledger));
	config.uffd = setup.uffd;
	config.pagemap_fd = setup.pagemap;
	config.mem_fd = -1;
	config.pidfd = setup.pidfd;
	config.pid = getpid();
	config.write_protect = true;
	config.rungs[0].kind = UFFDB_RUNG_OBSERVE;
	CHECK(!uffdb_engine_create(&config, setup.ledger, &setup.engine));
	CHECK(!stats_of(&setup).slackens);
	tear_down(&setup);
	close(memory);
}

#define GREEDY 8
#define ROUNDS 20
#define FLOOR  40ull

struct greedy {
	pthread_t thread;
	uint8_t *memory;
	uint64_t index;
	_Atomic bool done;
};

/* Each begins elsewhere, and wants all of it. */
static void *take_all(void *argument)
{
	struct greedy *greedy = argument;
	const uint64_t pages = BALLOONED * HUGE / PAGE;

	for (uint64_t i = 0; i < pages; i++) {
		uint64_t page = (i + greedy->index * pages / GREEDY) % pages;

		*(volatile uint8_t *)(greedy->memory + page * PAGE + greedy->index) = byte_of(page);
	}
	greedy->done = true;
	return NULL;
}

static void await_all_held(const struct setup *setup, struct greedy *greedy)
{
	uint64_t waiting, left;

	do {
		CHECK(resident_bytes(setup) <= (BALLOONED - FLOOR) * HUGE);
		left = 0;
		waiting = stats_of(setup).parked;
		for (int i = 0; i < GREEDY; i++)
			left += !greedy[i].done;
	} while (!waiting || waiting < left);
}

static void threads_that_take_all_they_can_never_pass_the_floor(void)
{
	const struct uffdb_terms floor = with_floor(FLOOR);
	struct greedy greedy[GREEDY];
	struct slack slack;
	struct setup *setup = &slack.setup;

	begin(&slack, (struct uffdb_engine_config){.terms = free_to_take,
						   .observing = UFFDB_OBSERVE_TRACE,
						   .follow = true,
						   .nr_rungs = 1,
						   .rungs = {{.kind = UFFDB_RUNG_FREEZE}},
						   .around_bytes = HUGE});
	for (int round = 0; round < ROUNDS; round++) {
		give_all_up(&slack);
		CHECK(uffdb_engine_set_policy(setup->engine, NULL, 0, &floor) == 0);
		for (uint64_t i = 0; i < GREEDY; i++) {
			greedy[i] = (struct greedy){.memory = setup->memory, .index = i};
			CHECK(!pthread_create(&greedy[i].thread, NULL, take_all, &greedy[i]));
		}
		await_all_held(setup, greedy);
		CHECK(uffdb_engine_look(setup->engine) >= 0);
		CHECK(uffdb_ledger_pages(setup->ledger) * PAGE + resident_bytes(setup) ==
		      BALLOONED * HUGE);
		CHECK(ballooned(setup) >= FLOOR && ballooned(setup) < FLOOR + 1);
		CHECK(uffdb_engine_set_policy(setup->engine, NULL, 0, &free_to_take) >= 0);
		for (int i = 0; i < GREEDY; i++)
			CHECK(!pthread_join(greedy[i].thread, NULL));
		CHECK(uffdb_engine_look(setup->engine) >= 0);
		CHECK(ballooned(setup) == 0);
		for (uint64_t page = 0; page < BALLOONED * HUGE / PAGE; page++)
			for (uint64_t i = 0; i < GREEDY; i++)
				CHECK(setup->memory[page * PAGE + i] == byte_of(page));
		check_filled(setup, BALLOONED, BLOCKS);
	}
	end(&slack);
}

int main(void)
{
	far_above_the_floor_a_touch_in_many_is_trapped();
	what_is_slack_counts_as_taken();
	another_contract_finds_all_trapped();
	what_was_only_read_is_trapped_when_it_is_written();
	what_the_guest_owns_is_taken_off_nobody();
	a_quiet_guest_is_trapped_again();
	with_a_ledger_for_others_all_is_trapped_always();
	for (by = UFFDB_TRACE_BY_PERF; by <= UFFDB_TRACE_BY_BPF; by++) {
		what_is_given_up_again_is_in_the_balloon_again();
		threads_that_take_all_they_can_never_pass_the_floor();
	}
	return 0;
}
