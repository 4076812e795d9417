// SPDX-License-Identifier: GPL-2.0-or-later
/* A balloon that is followed by what QEMU logs; this process plays QEMU and the guest. */
#include <sys/wait.h>
#include <time.h>

#include "log_writer.h"

struct observed {
	struct setup setup;
	struct uffdb_trace *trace;
	struct log_file log;
};

static void observe_as(struct observed *observed, struct log_file log, uint64_t actual,
		       struct uffdb_engine_config config)
{
	struct setup *setup = &observed->setup;

	observed->log = log;
	observed->log.actual = actual;
	open_fds(setup, WANTED);
	setup->memory = map_aligned(SIZE);
	observed->trace = read_log(&observed->log, address(setup), SIZE);
	config.nr_rungs = 1;
	config.rungs[0].kind = UFFDB_RUNG_OBSERVE;
	config.observing = UFFDB_OBSERVE_TRACE;
	config.trace = observed->trace;
	make_engine_over(setup, SIZE, 0, config);
	memset(setup->memory, 1, SIZE);
	CHECK(!uffdb_engine_start(setup->engine));
}

static void observe(struct observed *observed)
{
	observe_as(observed, make_log(), 0, (struct uffdb_engine_config){0});
}

static void end(struct observed *observed)
{
	tear_down(&observed->setup);
	uffdb_trace_destroy(observed->trace);
	end_log(&observed->log);
}

static void follow(struct observed *observed)
{
	CHECK(uffdb_engine_follow(observed->setup.engine) >= 0);
}

static uint64_t ballooned(struct observed *observed)
{
	return uffdb_ledger_pages(observed->setup.ledger);
}

static bool is_ballooned(struct observed *observed, uint64_t page)
{
	return uffdb_ledger_test(observed->setup.ledger, address(&observed->setup) + page * PAGE) >
	       0;
}

/* As QEMU does: the line first. */
static void give_up(struct observed *observed, uint64_t page)
{
	CHECK(log_page(&observed->log, page));
	CHECK(!madvise(observed->setup.memory + page * PAGE, PAGE, MADV_DONTNEED));
}

static void take_back(struct observed *observed, uint64_t page)
{
	CHECK(log_page(&observed->log, page));
}

static void give_up_and_count(struct observed *observed, uint64_t from, uint64_t to)
{
	for (uint64_t page = from; page < to; page++)
		give_up(observed, page);
	log_actual(&observed->log, observed->log.actual + to - from);
}

static void take_back_and_count(struct observed *observed, uint64_t from, uint64_t to)
{
	for (uint64_t page = from; page < to; page++)
		take_back(observed, page);
	log_actual(&observed->log, observed->log.actual - (to - from));
}

static void keeps_its_bytes(struct observed *observed, uint64_t from, uint64_t to)
{
	for (uint64_t page = from; page < to; page++)
		CHECK(observed->setup.memory[page * PAGE] == 1);
}

static void pages_are_followed_in_and_out(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	give_up_and_count(&observed, 3, 13);
	follow(&observed);
	CHECK(ballooned(&observed) == 10 && stats_of(setup).windows == 1);
	CHECK(stats_of(setup).observed_inflated == 10);
	setup->memory[5 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 1 && ballooned(&observed) == 9);
	/* The page that was touched is in the driver's balloon all the same. */
	take_back_and_count(&observed, 3, 13);
	setup->memory[6 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 1 && ballooned(&observed) == 0);
	follow(&observed);
	CHECK(stats_of(setup).windows == 0 && stats_of(setup).observed_deflated == 9);
	CHECK(stats_of(setup).resyncs == 0 && stats_of(setup).given_twice == 0);
	keeps_its_bytes(&observed, 0, 3);
	keeps_its_bytes(&observed, 13, PAGES);
	CHECK(setup->memory[5 * PAGE] == 2 && setup->memory[6 * PAGE] == 2);
	end(&observed);
}

/* Every page is taken back and written at once, as fast as it goes; the count comes later. */
static void a_deflate_is_known_before_the_touch_that_follows(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	give_up_and_count(&observed, 0, PAGES);
	follow(&observed);
	for (int round = 0; round < 5; round++) {
		for (uint64_t page = 0; page < PAGES; page++) {
			take_back(&observed, page);
			setup->memory[page * PAGE] = (uint8_t)(page + 1);
		}
		log_actual(&observed.log, 0);
		CHECK(ballooned(&observed) == 0);
		for (uint64_t page = 0; page < PAGES; page++)
			CHECK(setup->memory[page * PAGE] == (uint8_t)(page + 1));
		give_up_and_count(&observed, 0, PAGES);
	}
	CHECK(stats_of(setup).violations == 0 && stats_of(setup).resyncs == 0);
	follow(&observed);
	CHECK(ballooned(&observed) == PAGES);
	end(&observed);
}

static void what_is_given_twice_stays_in(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	give_up_and_count(&observed, 0, 8);
	give_up(&observed, 8);
	give_up(&observed, 5);
	follow(&observed);
	CHECK(!is_ballooned(&observed, 5)); /* nobody can tell yet */
	log_actual(&observed.log, 10);
	follow(&observed);
	CHECK(is_ballooned(&observed, 5) && ballooned(&observed) == 9);
	CHECK(stats_of(setup).given_twice == 1 && stats_of(setup).resyncs == 0);
	CHECK(stats_of(setup).observed_inflated == 9 && stats_of(setup).observed_deflated == 0);
	setup->memory[5 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 1);
	keeps_its_bytes(&observed, 9, PAGES);
	end(&observed);
}

/* Linux's driver moves a page of its balloon: one in, one out, and the count as it is. */
static void a_page_that_the_driver_moves_is_given_once(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	give_up_and_count(&observed, 0, 8);
	give_up(&observed, 100);
	take_back(&observed, 3);
	setup->memory[3 * PAGE] = 7;
	log_actual(&observed.log, observed.log.actual); /* it says nothing new */
	for (uint64_t page = 8; page < 16; page++)
		give_up(&observed, page);
	log_actual(&observed.log, 16);
	follow(&observed);
	CHECK(ballooned(&observed) == 16 && !is_ballooned(&observed, 3));
	setup->memory[3 * PAGE] = 8;
	CHECK(stats_of(setup).violations == 0 && stats_of(setup).given_twice == 0);
	CHECK(stats_of(setup).resyncs == 0 && setup->memory[3 * PAGE] == 8);
	setup->memory[100 * PAGE] = 1;
	CHECK(stats_of(setup).violations == 1);
	end(&observed);
}

/* A legacy device's driver writes four bytes, one after the other. */
static void a_count_that_is_written_byte_by_byte_is_understood(void)
{
	const uint64_t written[] = {0x1fff0, 0x1fff0, 0x0fff0, 0x0fff0};
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe_as(&observed, make_log(), 0xfff0, (struct uffdb_engine_config){0});
	give_up_and_count(&observed, 0, 16); /* 0x10000 */
	follow(&observed);
	for (uint64_t page = 0; page < 16; page++)
		take_back(&observed, page);
	for (size_t i = 0; i < 4; i++) {
		log_actual(&observed.log, written[i]);
		follow(&observed);
		CHECK(ballooned(&observed) == 0);
		setup->memory[i * PAGE] = 3;
	}
	CHECK(stats_of(setup).violations == 0 && stats_of(setup).given_twice == 0);
	give_up_and_count(&observed, 20, 24);
	follow(&observed);
	CHECK(ballooned(&observed) == 4 && stats_of(setup).resyncs == 0);
	CHECK(stats_of(setup).lost_records == 0);
	end(&observed);
}

/* What was given up before anybody logged is taken back: no inflate, though it looks like one. */
static void a_balloon_that_was_there_is_taken_back(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe_as(&observed, make_log(), 64, (struct uffdb_engine_config){0});
	CHECK(!madvise(setup->memory, 64 * PAGE, MADV_DONTNEED)); /* before */
	for (uint64_t page = 0; page < 32; page++)
		take_back(&observed, page);
	follow(&observed);
	CHECK(ballooned(&observed) == 32);
	setup->memory[7 * PAGE] = 9; /* before the driver has told its count */
	CHECK(stats_of(setup).doubtful == 1);
	log_actual(&observed.log, 32);
	follow(&observed);
	CHECK(ballooned(&observed) == 0 && stats_of(setup).violations == 0);
	CHECK(stats_of(setup).resyncs == 1 && stats_of(setup).observed_inflated == 1);
	take_back_and_count(&observed, 32, 64);
	give_up_and_count(&observed, 0, 4); /* the count was 0: all is certain again */
	follow(&observed);
	setup->memory[2 * PAGE] = 9;
	CHECK(stats_of(setup).violations == 1 && ballooned(&observed) == 3);
	CHECK(setup->memory[7 * PAGE] == 9);
	keeps_its_bytes(&observed, 64, PAGES);
	end(&observed);
}

static void lost_lines_are_found_by_the_count(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	give_up_and_count(&observed, 0, 8);
	follow(&observed);
	CHECK(write_text(&observed.log, "virtio_balloon_handle_output section na\n"));
	/* Lost: 0 to 3 were taken back and 100 to 103 given up. */
	log_actual(&observed.log, 8);
	for (uint64_t page = 0; page < 4; page++)
		setup->memory[page * PAGE] = 5;
	CHECK(stats_of(setup).violations == 0 && stats_of(setup).lost_records == 1);
	CHECK(stats_of(setup).doubtful == 4 && ballooned(&observed) == 4);
	/* 100 to 103 come out, which looks as if they came in. */
	for (uint64_t page = 100; page < 104; page++)
		take_back(&observed, page);
	follow(&observed);
	CHECK(is_ballooned(&observed, 100));
	memset(setup->memory + 100 * PAGE, 6, PAGE);
	log_actual(&observed.log, 4);
	follow(&observed);
	CHECK(stats_of(setup).violations == 0 && ballooned(&observed) == 4);
	CHECK(stats_of(setup).resyncs == 2);
	/* 0 to 3 come in, which looks as if they went out. */
	for (uint64_t page = 0; page < 4; page++)
		give_up(&observed, page);
	log_actual(&observed.log, 8);
	follow(&observed);
	CHECK(is_ballooned(&observed, 0) && ballooned(&observed) == 8);
	setup->memory[0] = 9;
	CHECK(stats_of(setup).violations == 1);
	keeps_its_bytes(&observed, 8, 100);
	keeps_its_bytes(&observed, 101, PAGES);
	end(&observed);
}

/* A count that nothing explains takes no page away, and holds none of its batch against a guest. */
static void what_cannot_be_explained_is_doubtful(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe(&observed);
	give_up_and_count(&observed, 0, 8);
	give_up(&observed, 8);
	give_up(&observed, 9);
	log_actual(&observed.log, 100);
	follow(&observed);
	CHECK(ballooned(&observed) == 10 && stats_of(setup).resyncs == 0);
	setup->memory[9 * PAGE] = 2;
	setup->memory[0] = 2;
	CHECK(stats_of(setup).violations == 1 && stats_of(setup).doubtful == 1);
	give_up_and_count(&observed, 20, 24);
	follow(&observed);
	CHECK(stats_of(setup).resyncs == 1 && ballooned(&observed) == 12);
	setup->memory[20 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 2);
	end(&observed);
}

/* More pages than are remembered; all of one kind, they are still explained. */
static void a_long_batch_is_bounded(void)
{
	struct observed observed;
	const uint64_t rounds = 6000;

	observe(&observed);
	for (uint64_t round = 0; round < rounds; round++)
		CHECK(log_page(&observed.log, round % PAGES));
	log_actual(&observed.log, rounds);
	follow(&observed);
	CHECK(ballooned(&observed) == PAGES);
	CHECK(stats_of(&observed.setup).given_twice > 0);
	end(&observed);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	CHECK(!clock_gettime(CLOCK_MONOTONIC, &now));
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void a_reset_empties_it(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	uint64_t before, after;

	observe(&observed);
	give_up_and_count(&observed, 0, 8);
	follow(&observed);
	before = now_ns();
	follow(&observed);
	give_up_and_count(&observed, 8, 12);
	CHECK(!uffdb_engine_reset(setup->engine, before));
	CHECK(ballooned(&observed) == 4); /* read with the reset, and later than it */
	after = now_ns();
	CHECK(!uffdb_engine_reset(setup->engine, after));
	CHECK(ballooned(&observed) == 0);
	observed.log.actual = 0;
	/* Nothing is sure, for a line may have been on either side, until a count is. */
	give_up_and_count(&observed, 4, 6);
	follow(&observed);
	CHECK(ballooned(&observed) == 2);
	setup->memory[4 * PAGE] = 1;
	CHECK(stats_of(setup).violations == 1);
	setup->memory[0] = 1;
	setup->memory[8 * PAGE] = 1;
	CHECK(stats_of(setup).violations == 1);
	keeps_its_bytes(&observed, 12, PAGES);
	end(&observed);
}

static void foreign_lines_and_gone_ram_change_nothing(void)
{
	struct observed observed;

	observe(&observed);
	CHECK(write_text(&observed.log, "qemu: hello\n\n7@1.000002:virtio_set_status vdev 1\n"));
	CHECK(write_line(&observed.log,
			 "7@1.000002:virtio_balloon_handle_output section name: "
			 "a b gpa: 0x%llx\n",
			 RAM_GPA + 2 * PAGE));
	CHECK(write_text(&observed.log, "virtio_balloon_handle_output section name: x gpa: "
					"0x10000\n"));
	CHECK(log_page(&observed.log, PAGES));
	CHECK(write_text(&observed.log, "virtio_balloon_handle_output section name: pc.ram gp"));
	follow(&observed);
	CHECK(ballooned(&observed) == 1 && is_ballooned(&observed, 2));
	CHECK(write_line(&observed.log, "a: 0x%llx\n", RAM_GPA + 3 * PAGE));
	follow(&observed);
	CHECK(ballooned(&observed) == 2 && is_ballooned(&observed, 3));
	CHECK(stats_of(&observed.setup).lost_records == 0);
	end(&observed);
}

/* QEMU opens its log anew, or somebody cuts it. */
static void a_truncated_log_is_read_from_its_beginning(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	off_t far = 512ll << 20;

	observe(&observed);
	give_up_and_count(&observed, 0, 8);
	follow(&observed);
	CHECK(!ftruncate(observed.log.fd, 0));
	give_up(&observed, 20);
	follow(&observed);
	CHECK(is_ballooned(&observed, 20) && stats_of(setup).resyncs == 1);
	log_actual(&observed.log, 9);
	/* Not opened for appending, it goes on where it was: a long hole comes first. */
	CHECK(!fcntl(observed.log.writer, F_SETFL, 0));
	CHECK(lseek(observed.log.writer, far, SEEK_SET) == far);
	give_up(&observed, 21);
	follow(&observed);
	CHECK(!ftruncate(observed.log.fd, 0));
	give_up(&observed, 22);
	follow(&observed);
	CHECK(is_ballooned(&observed, 21) && is_ballooned(&observed, 22));
	keeps_its_bytes(&observed, 23, PAGES);
	end(&observed);
}

static bool is_readable(int fd, int patience_ms)
{
	struct pollfd poller = {.fd = fd, .events = POLLIN};

	return poll(&poller, 1, patience_ms) == 1;
}

/* By another process, as QEMU is one. */
static void write_elsewhere(struct log_file *log)
{
	pid_t child = fork();
	int status;

	if (!child)
		_exit(!log_page(log, 1));
	CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void the_bell_rings_once_for_what_is_written(void)
{
	struct observed observed;
	int fd;

	observe(&observed);
	fd = uffdb_trace_fd(observed.trace);
	for (int round = 0; round < 3; round++) {
		follow(&observed);
		CHECK(!uffdb_trace_quiet(observed.trace));
		CHECK(!is_readable(fd, 0));
		write_elsewhere(&observed.log);
		CHECK(is_readable(fd, -1));
		uffdb_trace_hush(observed.trace);
		CHECK(!is_readable(fd, 0));
		write_elsewhere(&observed.log);
		CHECK(!is_readable(fd, 0));
		CHECK(!uffdb_trace_quiet(observed.trace));
		CHECK(!is_readable(fd, 0)); /* what came before it is drained once more */
		uffdb_trace_hush(observed.trace);
		write_elsewhere(&observed.log);
		CHECK(!is_readable(fd, 0));
	}
	end(&observed);
}

/* Another client of QEMU's monitor had it log elsewhere; then it logs here again. */
static void a_log_that_is_left_for_another_is_noticed(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;
	int fd;

	observe(&observed);
	give_up_and_count(&observed, 0, 8);
	follow(&observed);
	fd = uffdb_trace_fd(observed.trace);
	CHECK(!uffdb_trace_quiet(observed.trace) && !is_readable(fd, 0));
	close(observed.log.writer);
	CHECK(is_readable(fd, -1));
	setup->memory[0] = 2; /* it may have been taken back, and nobody was told */
	CHECK(stats_of(setup).violations == 0 && stats_of(setup).doubtful == 1);
	CHECK(stats_of(setup).resyncs == 1 && stats_of(setup).lost_records == 0);
	CHECK(!is_readable(fd, 0) && ballooned(&observed) == 7);
	observed.log.writer = open_writer(observed.log.fd);
	take_back_and_count(&observed, 0, 8);
	follow(&observed);
	CHECK(ballooned(&observed) == 0);
	give_up_and_count(&observed, 20, 24);
	follow(&observed);
	setup->memory[20 * PAGE] = 2;
	CHECK(stats_of(setup).violations == 1 && ballooned(&observed) == 3);
	keeps_its_bytes(&observed, 24, PAGES);
	end(&observed);
}

static void await_windows(struct observed *observed, uint64_t windows)
{
	while (stats_of(&observed->setup).windows != windows)
		usleep(1000);
}

/* Nobody calls uffdb_engine_follow() here. */
static void a_thread_of_its_own_follows(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe_as(&observed, make_log(), 0, (struct uffdb_engine_config){.follow = true});
	for (int round = 0; round < 3; round++) {
		uint64_t count;

		give_up_and_count(&observed, 7, 8);
		await_windows(&observed, 1);
		CHECK(is_readable(uffdb_engine_news_fd(setup->engine), -1));
		CHECK(read(uffdb_engine_news_fd(setup->engine), &count, sizeof(count)) == 8);
		CHECK(ballooned(&observed) == 1 && !stats_of(setup).moving);
		take_back_and_count(&observed, 7, 8);
		await_windows(&observed, 0);
		CHECK(is_readable(uffdb_engine_news_fd(setup->engine), -1));
		CHECK(read(uffdb_engine_news_fd(setup->engine), &count, sizeof(count)) == 8);
	}
	end(&observed);
}

static uint64_t blocks_bytes(const struct log_file *log)
{
	struct stat of;

	CHECK(!fstat(log->fd, &of));
	return (uint64_t)of.st_blocks * 512;
}

static void what_was_read_takes_no_memory(void)
{
	static char lines[1 << 20];
	struct observed observed;
	size_t filled = 0;

	while (filled + 128 < sizeof(lines))
		filled += (size_t)snprintf(lines + filled, 128,
					   "virtio_balloon_handle_output section name: pc.ram "
					   "gpa: 0x%llx\n",
					   RAM_GPA + 3 * PAGE);
	observe(&observed);
	for (int megabyte = 0; megabyte < 100; megabyte++) {
		CHECK(write(observed.log.writer, lines, filled) == (ssize_t)filled);
		follow(&observed);
	}
	CHECK(blocks_bytes(&observed.log) <= 2 << 20);
	CHECK(stats_of(&observed.setup).lost_records == 0);
	CHECK(stats_of(&observed.setup).resyncs == 0);
	end(&observed);
}

/* Nobody reads for a while; a line ends where the room does, and the next goes on in it. */
static void a_full_file_system_loses_lines_and_says_so(void)
{
	struct observed observed;
	struct setup *setup = &observed.setup;

	observe_as(&observed, make_small_log(256 << 10), 0, (struct uffdb_engine_config){0});
	give_up_and_count(&observed, 0, 8);
	follow(&observed);
	CHECK(stats_of(setup).resyncs == 0);
	while (write_text(&observed.log, "something else that is logged\n"))
		;
	CHECK(!log_page(&observed.log, 0)); /* lost: it is taken back */
	setup->memory[0] = 2;
	CHECK(stats_of(setup).violations == 0 && stats_of(setup).resyncs == 1);
	CHECK(stats_of(setup).doubtful == 1);
	/* There is room again. */
	give_up(&observed, 9);
	follow(&observed);
	CHECK(is_ballooned(&observed, 9));
	give_up(&observed, 10);
	follow(&observed);
	CHECK(is_ballooned(&observed, 10));
	keeps_its_bytes(&observed, 11, PAGES);
	end(&observed);
}

static void what_cannot_serve_is_refused(void)
{
	struct uffdb_trace_config config = {.by = UFFDB_TRACE_BY_LOG, .log_fd = -1};
	struct uffdb_trace *trace = NULL;
	struct log_file log = make_log();
	int fds[UFFDB_TRACE_FDS], why;

	CHECK(uffdb_trace_create(&config, &trace) == -EBADF);
	config.log_fd = log.writer;
	CHECK(uffdb_trace_create(&config, &trace) == -EACCES);
	config.log_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	CHECK(config.log_fd >= 0 && uffdb_trace_create(&config, &trace) < 0);
	close(config.log_fd);
	trace = read_log(&log, 0x10000, PAGE);
	CHECK(uffdb_trace_fds(trace, fds) == 0);
	CHECK(!strcmp(uffdb_trace_source(trace, &why), "log") && why == 0);
	uffdb_trace_destroy(trace);
	end_log(&log);
}

int main(void)
{
	what_cannot_serve_is_refused();
	pages_are_followed_in_and_out();
	a_deflate_is_known_before_the_touch_that_follows();
	what_is_given_twice_stays_in();
	a_page_that_the_driver_moves_is_given_once();
	a_count_that_is_written_byte_by_byte_is_understood();
	a_balloon_that_was_there_is_taken_back();
	lost_lines_are_found_by_the_count();
	what_cannot_be_explained_is_doubtful();
	a_long_batch_is_bounded();
	a_reset_empties_it();
	foreign_lines_and_gone_ram_change_nothing();
	a_truncated_log_is_read_from_its_beginning();
	the_bell_rings_once_for_what_is_written();
	a_log_that_is_left_for_another_is_noticed();
	a_thread_of_its_own_follows();
	what_was_read_takes_no_memory();
	a_full_file_system_loses_lines_and_says_so();
	return 0;
}
