// SPDX-License-Identifier: GPL-2.0-or-later
/* Following a balloon: this process plays the guest's device, by the same system calls. */
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/wait.h>

#include "engine_setup.h"

#define REPORT	   (512 * PAGE)
#define WP_SHARED  0x1000u	/* UFFD_FEATURE_WP_HUGETLBFS_SHMEM */
#define UFFD_WP	   (1ull << 57) /* in an entry of pagemap */
#define LOOK_AGAIN 250000	/* us; the engine waits 200 ms before it judges what it suspects */

struct observed {
	struct setup setup;
	struct uffdb_trace *trace;
};

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

static uint32_t by; /* every test is run with each source of the trace */

static struct uffdb_trace *make_trace(uint64_t ring_bytes)
{
	struct uffdb_trace_config config = {.pid = getpid(), .ring_bytes = ring_bytes, .by = by};
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
		fprintf(stderr, "no %s here: %s\n",
			by == UFFDB_TRACE_BY_BPF ? "BPF" : "perf events", strerror(-error));
		exit(SKIPPED);
	}
	CHECK(!error);
	return trace;
}

static void observe_with(struct observed *observed, uint64_t ring_bytes, struct uffdb_terms terms)
{
	observed->trace = make_trace(ring_bytes);
	set_up_with(&observed->setup, (struct uffdb_engine_config){
					      .terms = terms,
					      .nr_rungs = 1,
					      .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
					      .observing = UFFDB_OBSERVE_TRACE,
					      .trace = observed->trace,
				      });
}

static void observe(struct observed *observed)
{
	observe_with(observed, 1 << 20, (struct uffdb_terms){0});
}

static void end(struct observed *observed)
{
	tear_down(&observed->setup);
	uffdb_trace_destroy(observed->trace);
}

static void give_up(struct setup *setup, uint64_t page)
{
	CHECK(!madvise(setup->memory + page * PAGE, PAGE, MADV_DONTNEED));
}

static void take_back(struct setup *setup, uint64_t page)
{
	/* Fails on anonymous memory of a kernel without swap; it is told all the same. */
	madvise(setup->memory + page * PAGE, PAGE, MADV_WILLNEED);
}

static void follow(struct setup *setup)
{
	CHECK(uffdb_engine_follow(setup->engine) >= 0);
}

static uint64_t ballooned(struct setup *setup)
{
	return uffdb_ledger_pages(setup->ledger);
}

static void pages_are_followed_in_and_out(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	memset(setup->memory, 1, SIZE);
	for (uint64_t page = 3; page < 13; page++)
		give_up(setup, page);
	follow(setup);
	CHECK(ballooned(setup) == 10 && stats_of(setup).windows == 1);
	CHECK(stats_of(setup).observed_inflated == 10 && stats_of(setup).arm_ns_max > 0);
	setup->memory[5 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 1 && ballooned(setup) == 9);
	for (uint64_t page = 3; page < 13; page++)
		take_back(setup, page);
	setup->memory[6 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 1 && ballooned(setup) == 0);
	follow(setup);
	CHECK(stats_of(setup).windows == 0 && stats_of(setup).observed_deflated == 9);
	for (uint64_t page = 0; page < PAGES; page++)
		CHECK(setup->memory[page * PAGE] == (page < 3 || page > 12    ? 1
						     : page == 5 || page == 6 ? 2
									      : 0));
	end(&observed);
}

static void *give_up_one(void *argument)
{
	give_up(argument, 1);
	return NULL;
}

static void threads_to_come_are_watched(void)
{
	struct observed observed;
	pthread_t thread;

	observe(&observed);
	CHECK(!pthread_create(&thread, NULL, give_up_one, &observed.setup));
	CHECK(!pthread_join(thread, NULL));
	follow(&observed.setup);
	CHECK(ballooned(&observed.setup) == 1);
	end(&observed);
}

/* Every page is taken back and written at once, as fast as it goes. */
static void a_deflate_is_known_before_the_touch_that_follows(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	for (uint64_t page = 0; page < PAGES; page++)
		give_up(setup, page);
	follow(setup);
	CHECK(ballooned(setup) == PAGES);
	for (int round = 0; round < 10; round++) {
		for (uint64_t page = 0; page < PAGES; page++) {
			take_back(setup, page);
			setup->memory[page * PAGE] = (uint8_t)(page + 1);
		}
		CHECK(ballooned(setup) == 0);
		for (uint64_t page = 0; page < PAGES; page++) {
			CHECK(setup->memory[page * PAGE] == (uint8_t)(page + 1));
			give_up(setup, page);
		}
	}
	CHECK(stats_of(setup).violations == 0);
	follow(setup); /* what was given up since the last touch */
	CHECK(ballooned(setup) == PAGES);
	end(&observed);
}

static void a_write_before_the_window_is_found(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	struct uffdb_event event = {0};

	observe(&observed);
	memset(setup->memory, 1, SIZE);
	give_up(setup, 7);
	give_up(setup, 8);
	give_up(setup, 9);
	setup->memory[7 * PAGE] = 5;
	CHECK(((volatile uint8_t *)setup->memory)[8 * PAGE] == 0);
	follow(setup);
	CHECK(stats_of(setup).late == 0 && stats_of(setup).late_reads == 1);
	usleep(LOOK_AGAIN);
	follow(setup);
	CHECK(stats_of(setup).late == 1 && stats_of(setup).violations == 1);
	CHECK(uffdb_engine_drain(setup->engine, &event, 1) == 1);
	CHECK(event.hva == address(setup) + 7 * PAGE && event.tid == 0);
	CHECK(ballooned(setup) == 2 && setup->memory[7 * PAGE] == 5);
	setup->memory[8 * PAGE] = 6; /* read before, so that it is there: trapped all the same */
	CHECK(stats_of(setup).violations == 2);
	end(&observed);
}

/* What was given up again meanwhile is not judged by what was there before. */
static void a_suspect_that_is_given_up_again_is_none(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	give_up(setup, 7);
	setup->memory[7 * PAGE] = 5;
	follow(setup);
	give_up(setup, 7);
	usleep(LOOK_AGAIN);
	follow(setup);
	CHECK(stats_of(setup).late == 0 && stats_of(setup).violations == 0);
	CHECK(ballooned(setup) == 1);
	end(&observed);
}

static uint64_t pagemap_entry(const struct setup *setup, uint64_t page)
{
	off_t at = (off_t)((address(setup) / PAGE + page) * sizeof(uint64_t));
	uint64_t entry;

	CHECK(pread(setup->pagemap, &entry, sizeof(entry), at) == sizeof(entry));
	return entry;
}

/* With RAM that is a file; return its fd, or -1 where such memory cannot be protected. */
static int observe_shared(struct observed *observed)
{
	struct setup *setup = &observed->setup;
	int uffd = uffdb_uffd_open(-1), fd;
	uint64_t known = 0;

	CHECK(uffd < 0 || !uffdb_uffd_api(uffd, 0, &known));
	close(uffd);
	if (!(known & WP_SHARED)) {
		fprintf(stderr, "no write protection of shared memory here\n");
		return -1;
	}
	fd = memfd_create("ram", MFD_CLOEXEC);
	CHECK(fd >= 0 && !ftruncate(fd, SIZE));
	open_fds(setup, WANTED | WP_SHARED);
	setup->memory = map_aligned(SIZE);
	CHECK(mmap(setup->memory, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) !=
	      MAP_FAILED);
	observed->trace = make_trace(1 << 20);
	make_engine_over(setup, SIZE, UFFDB_BLOCK_SHARED,
			 (struct uffdb_engine_config){
				 .nr_rungs = 1,
				 .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
				 .observing = UFFDB_OBSERVE_TRACE,
				 .trace = observed->trace,
				 .write_protect_shared = true,
			 });
	CHECK(!uffdb_engine_start(setup->engine));
	return fd;
}

static void punch(int fd, uint64_t page)
{
	CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * PAGE),
			 PAGE));
}

/* As a hole that is traced when its punching begins, and there when it has ended. */
static void a_suspect_that_goes_unseen_is_none(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	const uint64_t last = PAGES - 1;
	int fd = observe_shared(&observed);
	struct uffdb_range found[2];
	uint64_t next = 0;

	if (fd < 0)
		return;
	memset(setup->memory, 1, SIZE);
	for (uint64_t page = last - 1; page <= last; page++) {
		CHECK(!madvise(setup->memory + page * PAGE, PAGE, MADV_REMOVE));
		setup->memory[page * PAGE] = 5;
	}
	follow(setup);
	CHECK(pagemap_entry(setup, last) & UFFD_WP);
	punch(fd, last); /* no file is traced here */
	CHECK(pagemap_entry(setup, last) & UFFD_WP);
	CHECK(uffdb_resident(setup->pagemap, address(setup), address(setup) + SIZE, found, 2,
			     &next) == 1);
	CHECK(found[0].len == SIZE - PAGE && next == address(setup) + SIZE);
	usleep(LOOK_AGAIN);
	follow(setup);
	CHECK(stats_of(setup).late == 1 && stats_of(setup).violations == 1);
	CHECK(uffdb_ledger_test(setup->ledger, address(setup) + last * PAGE) == 1);
	CHECK(ballooned(setup) == 1 && setup->memory[(last - 1) * PAGE] == 5);
	CHECK(!pagemap_entry(setup, last)); /* nothing is left that looks like memory */
	setup->memory[last * PAGE] = 6;
	CHECK(stats_of(setup).violations == 2 && stats_of(setup).late == 1);
	end(&observed);
	close(fd);
}

static void *touch_absent_pages(void *argument)
{
	struct setup *setup = argument;

	/* Far apart: each is filled by an answer of its own. */
	for (uint64_t page = 1; page < PAGES / 2; page += 2)
		setup->memory[page * PAGE] = 1;
	return NULL;
}

/* What is discarded while a touch beside it is answered is nothing that could be protected. */
static void a_page_that_is_gone_is_not_protected(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	const uint64_t first = PAGES / 2 + 1, last = PAGES / 2 + HUGE / PAGE;
	int fd = observe_shared(&observed);

	if (fd < 0)
		return;
	/* So that all of it is in windows. */
	for (uint64_t page = 0; page < PAGES / 2; page += 2)
		CHECK(uffdb_engine_inflate(setup->engine, address(setup) + page * PAGE, PAGE) == 1);
	CHECK(uffdb_engine_inflate(setup->engine, address(setup) + PAGES / 2 * PAGE, PAGE) == 1);
	for (int round = 0; round < 8; round++) {
		pthread_t thread;

		memset(setup->memory + first * PAGE, 1, (last - first) * PAGE);
		CHECK(!pthread_create(&thread, NULL, touch_absent_pages, setup));
		for (uint64_t page = first; page < last; page++) {
			/* As QEMU does, ram_block_discard_range(); the second is traced. */
			punch(fd, page);
			CHECK(!madvise(setup->memory + page * PAGE, PAGE, MADV_REMOVE));
		}
		CHECK(!pthread_join(thread, NULL));
		follow(setup);
		CHECK(ballooned(setup) == PAGES / 4 + last - first + 1);
		for (uint64_t page = first; page < last; page++) {
			CHECK(!pagemap_entry(setup, page));
			take_back(setup, page);
		}
		follow(setup);
		for (uint64_t page = 1; page < PAGES / 2; page += 2)
			punch(fd, page);
	}
	CHECK(stats_of(setup).violations == 0);
	end(&observed);
	close(fd);
}

static void a_report_is_no_inflate(void)
{
	struct observed observed;

	observe(&observed);
	memset(observed.setup.memory, 1, SIZE);
	CHECK(!madvise(observed.setup.memory, REPORT, MADV_DONTNEED));
	follow(&observed.setup);
	CHECK(ballooned(&observed.setup) == 0);
	CHECK(stats_of(&observed.setup).reported_bytes == REPORT);
	end(&observed);
}

static uint64_t huge_bytes(const struct setup *setup)
{
	uint64_t start = 0, end = 0, kib, sum = 0;
	FILE *smaps = fopen("/proc/self/smaps", "re");
	char line[512];

	CHECK(smaps);
	while (fgets(line, sizeof(line), smaps)) {
		sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end);
		if (start >= address(setup) && end <= address(setup) + SIZE &&
		    sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1)
			sum += kib << 10;
	}
	fclose(smaps);
	return sum;
}

static const struct uffdb_terms counting = {.kind = UFFDB_CONTRACT_CAP, .count_reported = 1};

/* All of the memory in huge pages, but for the last 2 MiB; its bytes tell where it is. */
static void fill_with_huge_pages(struct setup *setup)
{
	CHECK(!madvise(setup->memory, SIZE - HUGE, MADV_HUGEPAGE));
	for (uint64_t page = 0; page < PAGES; page++)
		memset(setup->memory + page * PAGE, (int)page | 1, PAGE);
}

static bool is_filled(const struct setup *setup, uint64_t first, uint64_t last)
{
	for (uint64_t page = first; page < last; page++)
		for (uint64_t i = 0; i < PAGE; i += 64)
			if (setup->memory[page * PAGE + i] != (uint8_t)(page | 1))
				return false;
	return true;
}

static void report(struct setup *setup, uint64_t offset, uint64_t len)
{
	CHECK(!madvise(setup->memory + offset, len, MADV_DONTNEED));
}

static void a_report_that_counts_is_granted_as_the_block_that_it_was(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	uint64_t huge;

	observe_with(&observed, 1 << 20, counting);
	fill_with_huge_pages(setup);
	huge = huge_bytes(setup);
	report(setup, 0, 2 * HUGE);
	follow(setup);
	CHECK(ballooned(setup) == 1024 && stats_of(setup).reported_pages == 1024);
	CHECK(stats_of(setup).reported_bytes == 2 * HUGE &&
	      stats_of(setup).armed_bytes == 2 * HUGE);
	CHECK(stats_of(setup).observed_inflated == 0);
	setup->memory[HUGE + 7 * PAGE] = 9;
	CHECK(stats_of(setup).granted == 1 && stats_of(setup).regained_bytes == HUGE);
	CHECK(ballooned(setup) == 512 && stats_of(setup).reported_pages == 512);
	for (uint64_t page = 512; page < 1024; page++)
		CHECK(setup->memory[page * PAGE] == (page == 519 ? 9 : 0));
	/* The rest of the block met no trap. */
	CHECK(stats_of(setup).granted == 1 && stats_of(setup).ordinary == 0);
	CHECK(stats_of(setup).armed_bytes == HUGE && stats_of(setup).violations == 0);
	CHECK(huge_bytes(setup) == (huge ? huge - HUGE : 0));
	CHECK(is_filled(setup, 1024, PAGES));
	/* And again: its window comes back. */
	report(setup, HUGE, HUGE);
	follow(setup);
	CHECK(ballooned(setup) == 1024 && stats_of(setup).armed_bytes == 2 * HUGE);
	CHECK(setup->memory[HUGE] == 0 && stats_of(setup).granted == 2);
	end(&observed);
}

static void a_report_is_granted_down_to_the_floor_and_no_further(void)
{
	struct uffdb_terms terms = counting;
	struct observed observed;
	struct setup *setup = &observed.setup;

	terms.floor_bytes = HUGE + HUGE / 2;
	observe_with(&observed, 1 << 20, terms);
	fill_with_huge_pages(setup);
	report(setup, 0, 3 * HUGE);
	follow(setup);
	setup->memory[0] = 1;
	CHECK(ballooned(setup) == 1024 && stats_of(setup).granted == 1);
	/* A block is too much by now, a page is not. */
	for (uint64_t page = 0; page < 256; page++)
		setup->memory[HUGE + page * PAGE] = 1;
	CHECK(stats_of(setup).granted == 257 && stats_of(setup).violations == 0);
	CHECK(ballooned(setup) * PAGE == terms.floor_bytes);
	setup->memory[2 * HUGE] = 1;
	CHECK(stats_of(setup).violations == 1 && stats_of(setup).granted == 257);
	CHECK(is_filled(setup, 3 * 512, PAGES));
	end(&observed);
}

/* A driver takes what is free, which was reported perhaps. */
static void what_was_reported_is_inflated_and_deflated(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe_with(&observed, 1 << 20, counting);
	fill_with_huge_pages(setup);
	report(setup, 0, HUGE);
	for (uint64_t page = 0; page < 4; page++)
		give_up(setup, page);
	follow(setup);
	CHECK(ballooned(setup) == 512 && stats_of(setup).reported_pages == 508);
	CHECK(stats_of(setup).observed_inflated == 4);
	/* It is no block that was reported free any more. */
	setup->memory[8 * PAGE] = 1;
	CHECK(ballooned(setup) == 511 && stats_of(setup).regained_bytes == 0);
	for (uint64_t page = 0; page < 4; page++)
		take_back(setup, page);
	follow(setup);
	CHECK(ballooned(setup) == 507 && stats_of(setup).reported_pages == 507);
	CHECK(stats_of(setup).observed_deflated == 4);
	CHECK(!uffdb_engine_reset(setup->engine, 0));
	CHECK(ballooned(setup) == 0 && stats_of(setup).reported_pages == 0);
	end(&observed);
}

/* Under told a touch of it would be called a violation, of a guest that promised nothing. */
static void reports_that_count_no_longer_are_the_guests(void)
{
	const struct uffdb_terms told = {0};
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe_with(&observed, 1 << 20, counting);
	fill_with_huge_pages(setup);
	report(setup, 0, HUGE);
	give_up(setup, 1024);
	follow(setup);
	CHECK(ballooned(setup) == 513);
	CHECK(uffdb_engine_set_policy(setup->engine, NULL, 0, &told) == 0);
	CHECK(ballooned(setup) == 1 && stats_of(setup).reported_pages == 0);
	setup->memory[0] = 1;
	CHECK(stats_of(setup).violations == 0);
	CHECK(uffdb_engine_tidy(setup->engine) >= 0);
	CHECK(stats_of(setup).armed_bytes == HUGE);
	setup->memory[1024 * PAGE] = 1;
	CHECK(stats_of(setup).violations == 1);
	report(setup, HUGE, HUGE);
	follow(setup);
	CHECK(ballooned(setup) == 0 && stats_of(setup).reported_bytes == 2 * HUGE);
	end(&observed);
}

static void who_takes_over_grants_whole_blocks_as_well(void)
{
	struct observed observed = {.trace = make_trace(1 << 20)};
	struct setup *setup = &observed.setup;

	make_engine(setup, SIZE,
		    (struct uffdb_engine_config){
			    .terms = counting,
			    .nr_rungs = 1,
			    .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
			    .observing = UFFDB_OBSERVE_TRACE,
			    .trace = observed.trace,
		    });
	CHECK(uffdb_ledger_set(setup->ledger, address(setup) + PAGE, 2 * HUGE) == 1024);
	CHECK(!uffdb_engine_resume(setup->engine, false));
	CHECK(!uffdb_engine_start(setup->engine));
	CHECK(stats_of(setup).reported_pages == 512);
	memset(setup->memory + HUGE, 1, HUGE);
	CHECK(stats_of(setup).granted == 1 && stats_of(setup).regained_bytes == HUGE);
	setup->memory[2 * HUGE] = 1;
	CHECK(stats_of(setup).granted == 2 && ballooned(setup) == 511);
	end(&observed);
}

#define GREEDY	    4
#define GREEDY_SIZE (16 * HUGE)

struct greedy {
	pthread_t thread;
	uint8_t *memory;
	uint64_t index;
	_Atomic bool done;
};

/* Every thread touches its pages of every block. */
static void *take_all(void *argument)
{
	struct greedy *greedy = argument;

	for (uint64_t page = greedy->index; page < GREEDY_SIZE / PAGE; page += GREEDY)
		memset(greedy->memory + page * PAGE, (int)(page % 251 + 1), PAGE);
	greedy->done = true;
	return NULL;
}

static void await_all_held(const struct setup *setup, struct greedy *greedy)
{
	uint64_t waiting, left;

	do {
		usleep(1000);
		left = 0;
		waiting = stats_of(setup).parked;
		for (int i = 0; i < GREEDY; i++)
			left += !greedy[i].done;
		CHECK(uffdb_ledger_pages(setup->ledger) * PAGE >= 5 * HUGE);
	} while (!waiting || waiting < left);
}

static void let_all_finish(struct setup *setup, struct greedy *greedy)
{
	CHECK(uffdb_engine_set_policy(setup->engine, NULL, 0, &counting) >= 0);
	for (int i = 0; i < GREEDY; i++)
		CHECK(!pthread_join(greedy[i].thread, NULL));
	for (uint64_t page = 0; page < GREEDY_SIZE / PAGE; page++)
		for (uint64_t i = 0; i < PAGE; i += 64)
			CHECK(setup->memory[page * PAGE + i] == page % 251 + 1);
	CHECK(ballooned(setup) == 0);
}

/* With the follower at work beside the loop, which then finds the windows busy. */
static void threads_that_take_all_they_can_stop_at_the_floor(void)
{
	struct greedy greedy[GREEDY];
	struct observed observed;
	struct setup *setup = &observed.setup;

	observed.trace = make_trace(1 << 20);
	make_engine(setup, GREEDY_SIZE,
		    (struct uffdb_engine_config){
			    .terms = counting,
			    .nr_rungs = 1,
			    .rungs = {{.kind = UFFDB_RUNG_FREEZE}},
			    .observing = UFFDB_OBSERVE_TRACE,
			    .trace = observed.trace,
			    .follow = true,
			    .around_bytes = HUGE,
		    });
	CHECK(!uffdb_engine_start(setup->engine));
	CHECK(!madvise(setup->memory, GREEDY_SIZE, MADV_HUGEPAGE));
	for (int round = 0; round < 8; round++) {
		struct uffdb_terms terms = counting;

		terms.floor_bytes = 5 * HUGE;
		memset(setup->memory, 1, GREEDY_SIZE);
		report(setup, 0, GREEDY_SIZE);
		while (stats_of(setup).armed_bytes < GREEDY_SIZE)
			follow(setup);
		CHECK(ballooned(setup) == GREEDY_SIZE / PAGE);
		CHECK(uffdb_engine_set_policy(setup->engine, NULL, 0, &terms) == 0);
		for (uint64_t i = 0; i < GREEDY; i++) {
			greedy[i].memory = setup->memory;
			greedy[i].index = i;
			greedy[i].done = false;
			CHECK(!pthread_create(&greedy[i].thread, NULL, take_all, &greedy[i]));
		}
		await_all_held(setup, greedy);
		let_all_finish(setup, greedy);
	}
	end(&observed);
}

/* It is free again at once for whoever needs it: its window may come later. */
static void a_report_that_is_taken_back_before_its_window_is_granted_as_a_block(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	uint64_t huge;

	observe_with(&observed, 1 << 20, counting);
	fill_with_huge_pages(setup);
	huge = huge_bytes(setup);
	report(setup, HUGE, HUGE);
	memset(setup->memory + HUGE, 9, HUGE);
	follow(setup);
	usleep(LOOK_AGAIN);
	follow(setup);
	CHECK(ballooned(setup) == 0 && stats_of(setup).reported_pages == 0);
	CHECK(stats_of(setup).granted == stats_of(setup).late && stats_of(setup).violations == 0);
	if (huge)
		CHECK(stats_of(setup).late == 1 && huge_bytes(setup) == huge);
	for (uint64_t at = HUGE; at < 2 * HUGE; at += 64)
		CHECK(setup->memory[at] == 9);
	end(&observed);
}

/* Of locked memory; what it holds is the guest's, who writes to it at once. */
static void a_refused_discard_gives_nothing_up(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	memset(setup->memory, 1, SIZE);
	if (!syscall(SYS_mlock, setup->memory, SIZE)) { /* ASan makes nothing of mlock() */
		CHECK(madvise(setup->memory, 2 * PAGE, MADV_DONTNEED) && errno == EINVAL);
		for (int i = 0; i < 2; i++)
			CHECK(madvise(setup->memory + i * PAGE, PAGE, MADV_DONTNEED));
		follow(setup);
		CHECK(ballooned(setup) == 0 && stats_of(setup).refused_discards == 2);
		CHECK(stats_of(setup).observed_inflated == 0);
		setup->memory[0]++;
		usleep(LOOK_AGAIN);
		follow(setup);
		CHECK(stats_of(setup).violations == 0 && setup->memory[0] == 2);
		CHECK(setup->memory[PAGE] == 1);
		CHECK(!syscall(SYS_munlock, setup->memory, SIZE));
		give_up(setup, 0);
		follow(setup);
		CHECK(ballooned(setup) == 1 && stats_of(setup).refused_discards == 2);
	}
	end(&observed);
}

/* In a window a touch would be trapped, but what is locked is there and traps none. */
static void a_discard_that_is_refused_in_a_window_is_found(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	void *more = map_aligned(HUGE);

	observe(&observed);
	memset(setup->memory, 1, SIZE);
	inflate(setup, 0, PAGE);
	/* All but the ballooned page, and as much of something else. */
	if (!syscall(SYS_mlock, setup->memory + PAGE, SIZE - PAGE)) {
		CHECK(!syscall(SYS_mlock, more, PAGE));
		CHECK(madvise(setup->memory + HUGE, PAGE, MADV_DONTNEED) && errno == EINVAL);
		follow(setup);
		CHECK(stats_of(setup).refused_discards == 1);
		CHECK(madvise(setup->memory + 5 * PAGE, PAGE, MADV_DONTNEED) && errno == EINVAL);
		follow(setup);
		CHECK(ballooned(setup) == 1 && stats_of(setup).refused_discards == 2);
		CHECK(setup->memory[5 * PAGE] == 1 && stats_of(setup).violations == 0);
		CHECK(!syscall(SYS_munlock, setup->memory + PAGE, SIZE - PAGE));
		CHECK(!syscall(SYS_munlock, more, PAGE));
	}
	end(&observed);
}

/* A library's locked secrets are not the guest's RAM. */
static void a_little_locked_memory_refuses_nothing(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	char secret[PAGE];

	observe(&observed);
	memset(setup->memory, 1, SIZE);
	if (!syscall(SYS_mlock, secret, sizeof(secret))) {
		give_up(setup, 3);
		setup->memory[3 * PAGE] = 1; /* before its window is there */
		follow(setup);
		usleep(LOOK_AGAIN);
		follow(setup);
		CHECK(stats_of(setup).refused_discards == 0);
		CHECK(stats_of(setup).late == 1);
		CHECK(!syscall(SYS_munlock, secret, sizeof(secret)));
	}
	end(&observed);
}

static void other_advice_changes_nothing(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	memset(setup->memory, 1, SIZE);
	give_up(setup, 3);
	follow(setup);
	CHECK(madvise(setup->memory, PAGE, -1) && errno == EINVAL);
	CHECK(!madvise(setup->memory + 3 * PAGE, PAGE, MADV_NORMAL));
	follow(setup);
	CHECK(ballooned(setup) == 1 && stats_of(setup).refused_discards == 0);
	end(&observed);
}

static void a_zap_of_our_own_is_no_report(void)
{
	struct observed observed;

	observe(&observed);
	inflate(&observed.setup, 0, 8 * PAGE);
	follow(&observed.setup);
	CHECK(stats_of(&observed.setup).reported_bytes == 0);
	CHECK(ballooned(&observed.setup) == 8);
	end(&observed);
}

/* perf has a ring for each CPU: who moves to another goes on in one that has room. */
static cpu_set_t stay_on_this_cpu(void)
{
	cpu_set_t before, here;

	CHECK(!sched_getaffinity(0, sizeof(before), &before));
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	CHECK(!sched_setaffinity(0, sizeof(here), &here));
	return before;
}

/* A ring that overflows: nothing is called a violation that may not be one. */
static void lost_records_lead_to_a_look_at_the_page_tables(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	cpu_set_t before;

	observe_with(&observed, PAGE, (struct uffdb_terms){0});
	before = stay_on_this_cpu();
	memset(setup->memory, 1, SIZE);
	for (uint64_t page = 0; page < 8; page++)
		give_up(setup, page);
	follow(setup);
	CHECK(ballooned(setup) == 8 && stats_of(setup).resyncs == 0);
	for (uint64_t page = 100; page < 1000; page++)
		take_back(setup, page); /* of which most are lost, and these, too: */
	for (uint64_t page = 0; page < 8; page++)
		take_back(setup, page);
	setup->memory[0] = 2;
	CHECK(stats_of(setup).resyncs > 0);
	CHECK(stats_of(setup).violations == 0 && stats_of(setup).doubtful == 1);
	give_up(setup, 3); /* this one is certain again */
	setup->memory[3 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 1);
	inflate(setup, 4 * PAGE, 2 * PAGE); /* and so is what the controlling side takes */
	setup->memory[5 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 2);
	CHECK(!sched_setaffinity(0, sizeof(before), &before));
	end(&observed);
}

static void a_reset_keeps_what_came_later(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	struct timespec now;

	observe(&observed);
	for (uint64_t page = 0; page < 8; page++)
		give_up(setup, page);
	follow(setup);
	CHECK(!uffdb_trace_quiet(observed.trace)); /* what rings has a time of its own */
	clock_gettime(CLOCK_MONOTONIC, &now);
	give_up(setup, 2);
	give_up(setup, 100);
	CHECK(!uffdb_engine_reset(setup->engine,
				  (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec));
	follow(setup);
	CHECK(ballooned(setup) == 2);
	CHECK(uffdb_ledger_test(setup->ledger, address(setup) + 2 * PAGE) == 1);
	CHECK(uffdb_ledger_test(setup->ledger, address(setup) + 100 * PAGE) == 1);
	CHECK(!uffdb_engine_reset(setup->engine, 0));
	follow(setup);
	CHECK(ballooned(setup) == 0 && stats_of(setup).windows == 0);
	end(&observed);
}

static bool is_readable(int fd)
{
	struct pollfd now = {.fd = fd, .events = POLLIN};

	return poll(&now, 1, 0) == 1;
}

/* However long it takes: a bell that never rings is ended by the time limit of the whole test. */
static void await_bell(int fd)
{
	struct pollfd wait = {.fd = fd, .events = POLLIN};

	while (poll(&wait, 1, -1) != 1)
		;
}

static void the_doorbell_rings_again_and_again(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	follow(setup); /* what was advised while all was set up */
	CHECK(!uffdb_trace_quiet(observed.trace));
	CHECK(!is_readable(uffdb_trace_fd(observed.trace)));
	give_up(setup, 1);
	await_bell(uffdb_trace_fd(observed.trace));
	for (int round = 0; round < 3; round++) {
		uffdb_trace_hush(observed.trace);
		for (uint64_t page = 0; page < 200; page++)
			give_up(setup, page);
		follow(setup);
		CHECK(!uffdb_trace_quiet(observed.trace));
		CHECK(!is_readable(uffdb_trace_fd(observed.trace)));
		give_up(setup, 1);
		await_bell(uffdb_trace_fd(observed.trace));
		CHECK(!uffdb_trace_quiet(observed.trace));
	}
	CHECK(ballooned(setup) == 200);
	end(&observed);
}

struct listener {
	int fd;
	_Atomic int tid;
	_Atomic bool begins;
};

static void *listen_to(void *argument)
{
	struct listener *listener = argument;

	listener->tid = (int)syscall(SYS_gettid);
	/* Awake: it sleeps when it listens, and not before. */
	while (!listener->begins)
		sched_yield();
	await_bell(listener->fd);
	return NULL;
}

static bool is_asleep(int tid)
{
	char path[64], text[256] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true; /* for good: something else has woken it */
	CHECK(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	return strstr(text, ") S ") != NULL;
}

/* The loop empties the ring as well: who listens then does not see that it was rung. */
static void the_doorbell_rings_though_another_took_what_it_rang_for(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	struct listener listener = {0};
	pthread_t thread;

	observe(&observed);
	listener.fd = uffdb_trace_fd(observed.trace);
	CHECK(!pthread_create(&thread, NULL, listen_to, &listener)); /* which may advise, too */
	while (!listener.tid)
		usleep(1000);
	follow(setup);
	CHECK(!uffdb_trace_quiet(observed.trace));
	give_up(setup, 1);
	if (by == UFFDB_TRACE_BY_PERF) /* whose bell stays rung until somebody hears it */
		await_bell(listener.fd);
	follow(setup);
	listener.begins = true;
	while (!is_asleep(listener.tid))
		usleep(1000);
	give_up(setup, 2);
	CHECK(!pthread_join(thread, NULL));
	end(&observed);
}

static void the_scan_finds_what_is_gone(void)
{
	struct setup setup;

	make_engine(&setup, SIZE,
		    (struct uffdb_engine_config){
			    .terms = {.kind = UFFDB_CONTRACT_CAP},
			    .nr_rungs = 1,
			    .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
			    .observing = UFFDB_OBSERVE_SCAN,
		    });
	CHECK(!uffdb_engine_start(setup.engine));
	memset(setup.memory, 1, SIZE / 2);
	CHECK(uffdb_engine_scan(setup.engine) == 0);
	for (uint64_t page = 10; page < 20; page += 2)
		give_up(&setup, page);
	CHECK(uffdb_engine_scan(setup.engine) == 5);
	CHECK(uffdb_engine_scan(setup.engine) == 0);
	follow(&setup);
	CHECK(ballooned(&setup) == 5 && stats_of(&setup).windows == 1);
	setup.memory[12 * PAGE] = 9;
	CHECK(stats_of(&setup).granted == 1 && ballooned(&setup) == 4);
	give_up(&setup, 11); /* and back, before anyone looks */
	setup.memory[11 * PAGE] = 9;
	CHECK(uffdb_engine_scan(setup.engine) == 0 && ballooned(&setup) == 4);
	CHECK(setup.memory[12 * PAGE] == 9 && setup.memory[11 * PAGE] == 9);
	CHECK(setup.memory[9 * PAGE] == 1);
	tear_down(&setup);
}

static void await_windows(const struct setup *setup, uint64_t windows)
{
	while (stats_of(setup).windows != windows)
		usleep(1000);
}

/* Nobody calls uffdb_engine_follow() here. */
static void a_thread_of_its_own_follows(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observed.trace = make_trace(1 << 20);
	set_up_with(setup, (struct uffdb_engine_config){
				   .nr_rungs = 1,
				   .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
				   .observing = UFFDB_OBSERVE_TRACE,
				   .trace = observed.trace,
				   .follow = true,
			   });
	for (int round = 0; round < 3; round++) {
		uint64_t count;

		give_up(setup, 7);
		await_windows(setup, 1);
		await_bell(uffdb_engine_news_fd(setup->engine));
		CHECK(read(uffdb_engine_news_fd(setup->engine), &count, sizeof(count)) == 8);
		CHECK(ballooned(setup) == 1 && !stats_of(setup).moving);
		if (round == 1)
			setup->memory[7 * PAGE] = 1; /* a grant empties the window, too */
		else
			take_back(setup, 7);
		await_windows(setup, 0);
		/* What was taken back was told before its window went. */
		CHECK(round == 1 ||
		      read(uffdb_engine_news_fd(setup->engine), &count, sizeof(count)) == 8);
	}
	end(&observed);
}

/* A page beside those that were given up is touched before their window is there. */
static void what_a_touch_beside_filled_is_zapped_again(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	struct uffdb_range unused[4];
	size_t nr;

	observe(&observed);
	for (uint64_t page = 0; page < 8; page++) {
		give_up(setup, page);
		if (page != 5)
			setup->memory[page * PAGE] = 0; /* as a huge page would, with zeros */
	}
	setup->memory[3 * PAGE] = 9; /* used it is, and so was not filled beside */
	follow(setup);
	usleep(LOOK_AGAIN);
	setup->memory[6 * PAGE] = 7; /* written to since we looked: trapped */
	CHECK(stats_of(setup).violations == 1);
	follow(setup);
	CHECK(stats_of(setup).late == 1 && stats_of(setup).violations == 2);
	nr = uffdb_engine_hold_zeros(setup->engine, unused, 4);
	CHECK(nr == 3 && unused[0].start == address(setup) && unused[0].len == 3 * PAGE);
	CHECK(unused[1].start == address(setup) + 4 * PAGE && unused[1].len == PAGE);
	CHECK(unused[2].start == address(setup) + 7 * PAGE && unused[2].len == PAGE);
	for (size_t i = 0; i < nr; i++)
		CHECK(!syscall(SYS_madvise, unused[i].start, unused[i].len, MADV_DONTNEED));
	uffdb_engine_go_on(setup->engine);
	CHECK(!uffdb_engine_hold_zeros(setup->engine, unused, 4));
	CHECK(ballooned(setup) == 6 && stats_of(setup).zapped_again == 5);
	CHECK(setup->memory[3 * PAGE] == 9 && setup->memory[6 * PAGE] == 7);
	setup->memory[0] = 1;
	CHECK(stats_of(setup).violations == 3);
	end(&observed);
}

/* A split maps an owned page of zeros to the zero page; that is no discard. */
static void zeros_that_lose_their_page_are_not_given_up(void)
{
	struct uffdb_range zeros;
	struct setup setup;

	make_engine(&setup, SIZE,
		    (struct uffdb_engine_config){
			    .terms = {.kind = UFFDB_CONTRACT_CAP},
			    .nr_rungs = 1,
			    .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
			    .observing = UFFDB_OBSERVE_SCAN,
		    });
	madvise(setup.memory, HUGE, MADV_HUGEPAGE);
	for (uint64_t page = 0; page < 512; page++)
		setup.memory[page * PAGE] = page != 7;
	setup.memory[7 * PAGE] = 0;
	keep_khugepaged_out(setup.memory, HUGE);
	CHECK(!uffdb_engine_start(setup.engine));
	CHECK(uffdb_engine_scan(setup.engine) == 0);
	zeros = (struct uffdb_range){address(&setup), PAGE};
	CHECK(uffdb_process_madvise(setup.pidfd, &zeros, 1, MADV_COLD) == PAGE);
	uffdb_engine_scan(setup.engine);
	CHECK(ballooned(&setup) == 0);
	give_up(&setup, 8);
	CHECK(uffdb_engine_scan(setup.engine) == 1 && ballooned(&setup) == 1);
	tear_down(&setup);
}

static void all_by_trace(void)
{
	a_thread_of_its_own_follows();
	what_a_touch_beside_filled_is_zapped_again();
	pages_are_followed_in_and_out();
	threads_to_come_are_watched();
	a_deflate_is_known_before_the_touch_that_follows();
	a_write_before_the_window_is_found();
	a_suspect_that_is_given_up_again_is_none();
	a_suspect_that_goes_unseen_is_none();
	a_page_that_is_gone_is_not_protected();
	a_report_is_no_inflate();
	a_report_that_counts_is_granted_as_the_block_that_it_was();
	a_report_is_granted_down_to_the_floor_and_no_further();
	what_was_reported_is_inflated_and_deflated();
	who_takes_over_grants_whole_blocks_as_well();
	reports_that_count_no_longer_are_the_guests();
	threads_that_take_all_they_can_stop_at_the_floor();
	a_report_that_is_taken_back_before_its_window_is_granted_as_a_block();
	a_refused_discard_gives_nothing_up();
	a_discard_that_is_refused_in_a_window_is_found();
	a_little_locked_memory_refuses_nothing();
	other_advice_changes_nothing();
	a_zap_of_our_own_is_no_report();
	lost_records_lead_to_a_look_at_the_page_tables();
	a_reset_keeps_what_came_later();
	the_doorbell_rings_again_and_again();
	the_doorbell_rings_though_another_took_what_it_rang_for();
}

/* One that sees little of the host by BPF must not keep it from the others. */
static void a_trace_by_bpf_hides_nothing_from_one_by_perf(void)
{
	struct observed observed;
	struct uffdb_trace *other;

	by = UFFDB_TRACE_BY_BPF;
	other = make_trace(1 << 20);
	by = UFFDB_TRACE_BY_PERF;
	observe(&observed);
	give_up(&observed.setup, 5);
	follow(&observed.setup);
	CHECK(ballooned(&observed.setup) == 1);
	end(&observed);
	uffdb_trace_destroy(other);
}

/* Whoever has its fds reads on; a trace of another process is refused. */
static void a_trace_outlives_who_made_it(void)
{
	struct uffdb_trace_config config = {.pid = getpid()}, other = {.pid = getpid() + 1};
	int fds[UFFDB_TRACE_FDS], kept[UFFDB_TRACE_FDS];
	struct observed observed;
	struct uffdb_trace *trace;

	by = UFFDB_TRACE_BY_PERF;
	trace = make_trace(1 << 20);
	CHECK(uffdb_trace_fds(trace, fds) == 0);
	uffdb_trace_destroy(trace);

	by = UFFDB_TRACE_BY_BPF;
	trace = make_trace(1 << 20);
	CHECK(uffdb_trace_fds(trace, fds) == UFFDB_TRACE_FDS);
	for (size_t i = 0; i < UFFDB_TRACE_FDS; i++)
		kept[i] = dup(fds[i]);
	uffdb_trace_destroy(trace);
	CHECK(uffdb_trace_go_on(&other, kept, &trace) == -EINVAL);
	CHECK(!uffdb_trace_go_on(&config, kept, &observed.trace));
	set_up_with(&observed.setup, (struct uffdb_engine_config){
					     .terms = {0},
					     .nr_rungs = 1,
					     .rungs = {{.kind = UFFDB_RUNG_OBSERVE}},
					     .observing = UFFDB_OBSERVE_TRACE,
					     .trace = observed.trace,
				     });
	give_up(&observed.setup, 5);
	follow(&observed.setup);
	CHECK(ballooned(&observed.setup) == 1);
	end(&observed);
}

/* Most of the time is waiting: for a second look, and for the kernel to close perf's events. */
static pid_t start_by_bpf(void)
{
	char self[] = "/proc/self/exe", argument[] = "bpf", *arguments[] = {self, argument, NULL};
	pid_t child;

	CHECK(!posix_spawn(&child, self, NULL, NULL, arguments, environ));
	return child;
}

int main(int argc, char **argv)
{
	pid_t child;
	int status;

	if (argc > 1) {
		CHECK(!strcmp(argv[1], "bpf"));
		by = UFFDB_TRACE_BY_BPF;
		all_by_trace();
		return 0;
	}
	a_trace_outlives_who_made_it();
	a_trace_by_bpf_hides_nothing_from_one_by_perf();
	the_scan_finds_what_is_gone();
	zeros_that_lose_their_page_are_not_given_up();
	child = start_by_bpf();
	by = UFFDB_TRACE_BY_PERF;
	all_by_trace();
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	return 0;
}
