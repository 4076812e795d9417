// SPDX-License-Identifier: GPL-2.0-or-later
/* Zeros that readers of shared memory were given are dropped again, and nothing else is. */
#include <poll.h>
#include <sys/stat.h>
#include <time.h>

#include "engine_setup.h"

/* With MISSING_HUGETLBFS, MISSING_SHMEM, MINOR_HUGETLBFS, MINOR_SHMEM, WP_HUGETLBFS_SHMEM */
#define WANTED_SHARED (WANTED | 0x30u | 0x600u | 0x1000u)

struct shared {
	struct setup setup;
	int fd;
	uint32_t flags;
	uint64_t page;
	struct uffdb_memory_file file;
};

static void map_file(struct shared *shared, bool huge)
{
	shared->page = huge ? HUGE : PAGE;
	shared->flags = UFFDB_BLOCK_SHARED | (huge ? UFFDB_BLOCK_HUGETLB : 0);
	shared->fd = memfd_create("ram", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
	CHECK(shared->fd >= 0 && !ftruncate(shared->fd, SIZE));
	shared->setup.memory = map_aligned(SIZE);
	CHECK(mmap(shared->setup.memory, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		   shared->fd, 0) != MAP_FAILED);
}

static struct uffdb_engine_config config_of(const struct shared *shared, bool drops)
{
	return (struct uffdb_engine_config){
		.write_protect_shared = true,
		.minor_shmem = true,
		.minor_hugetlbfs = true,
		.nr_rungs = 2,
		.rungs = {{.kind = UFFDB_RUNG_ZERO_READ}, {.kind = UFFDB_RUNG_OBSERVE}},
		.memory_files = &shared->file,
		.nr_memory_files = drops,
	};
}

static void set_up_shared(struct shared *shared, bool huge, bool drops)
{
	open_fds(&shared->setup, WANTED_SHARED);
	map_file(shared, huge);
	shared->file = (struct uffdb_memory_file){
		.fd = shared->fd, .hva = address(&shared->setup), .len = SIZE};
	make_engine_over(&shared->setup, SIZE, shared->flags, config_of(shared, drops));
	CHECK(!uffdb_engine_start(shared->setup.engine));
}

static void tear_down_shared(struct shared *shared)
{
	tear_down(&shared->setup);
	munmap(shared->setup.memory, SIZE);
	close(shared->fd);
}

static void take(struct shared *shared, uint64_t offset, uint64_t len)
{
	CHECK(uffdb_engine_inflate(shared->setup.engine, address(&shared->setup) + offset, len) >=
	      0);
	CHECK(!uffdb_punch_hole(shared->fd, offset, len));
}

static uint64_t file_bytes(const struct shared *shared)
{
	struct stat found;

	CHECK(!fstat(shared->fd, &found));
	return (uint64_t)found.st_blocks * 512;
}

static void wait_until_file_has(const struct shared *shared, uint64_t bytes)
{
	const struct timespec pause = {.tv_nsec = 1000000};

	while (file_bytes(shared) != bytes)
		nanosleep(&pause, NULL);
}

static uint8_t read_at(const struct shared *shared, uint64_t offset)
{
	return ((volatile uint8_t *)shared->setup.memory)[offset];
}

static void write_at(const struct shared *shared, uint64_t offset, uint8_t value)
{
	((volatile uint8_t *)shared->setup.memory)[offset] = value;
}

static void reading_all_of_the_balloon_costs_nothing_in_the_end(bool huge)
{
	struct shared shared;
	uint64_t pages;

	set_up_shared(&shared, huge, true);
	pages = (SIZE - HUGE) / shared.page;
	memset(shared.setup.memory, 0x5a, SIZE);
	take(&shared, HUGE, SIZE - HUGE);
	for (uint64_t at = HUGE; at < SIZE; at += shared.page)
		CHECK(read_at(&shared, at + 9) == 0);
	wait_until_file_has(&shared, HUGE);
	CHECK(stats_of(&shared.setup).actions[UFFDB_ACTION_ZERO_READ] == pages);
	CHECK(uffdb_ledger_pages(shared.setup.ledger) == (SIZE - HUGE) / PAGE);
	for (uint64_t at = 0; at < HUGE; at++)
		CHECK(read_at(&shared, at) == 0x5a);
	/* It is trapped as before; to read it again is no other violation. */
	CHECK(read_at(&shared, SIZE - shared.page) == 0);
	CHECK(stats_of(&shared.setup).actions[UFFDB_ACTION_ZERO_READ] == pages);
	CHECK(stats_of(&shared.setup).exists > 0);
	wait_until_file_has(&shared, HUGE);
	write_at(&shared, HUGE + 1, 7);
	CHECK(stats_of(&shared.setup).actions[UFFDB_ACTION_GRANT] == 1);
	CHECK(stats_of(&shared.setup).violations == pages + 1);
	/* Since a page has left the balloon, others may have come again. */
	CHECK(read_at(&shared, SIZE - shared.page) == 0);
	CHECK(stats_of(&shared.setup).violations == pages + 2);
	CHECK(stats_of(&shared.setup).failed == 0);
	CHECK(uffdb_ledger_test(shared.setup.ledger, address(&shared.setup) + HUGE) == 0);
	tear_down_shared(&shared);
}

/* One that is read later is dropped by now: so was, or was not, what came before it. */
static void wait_for_a_later_one(const struct shared *shared, uint64_t offset)
{
	uint64_t before = file_bytes(shared);

	CHECK(read_at(shared, offset) == 0);
	wait_until_file_has(shared, before);
}

static void what_was_granted_deflated_or_written_meanwhile_stays(bool huge)
{
	struct shared shared;
	uint64_t hva, page;

	set_up_shared(&shared, huge, true);
	hva = address(&shared.setup);
	page = shared.page;
	take(&shared, 0, 4 * page);
	for (uint64_t at = 0; at < 3 * page; at += page)
		CHECK(read_at(&shared, at) == 0);
	write_at(&shared, 5, 1);
	write_at(&shared, page - 1, 2);
	CHECK(uffdb_engine_deflate(shared.setup.engine, hva + page, page) > 0);
	write_at(&shared, page + 5, 3);
	/* As a device of another process does; hugetlbfs has no write(2). */
	memcpy(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, shared.fd, 0) + 2 * page,
	       &(uint8_t){4}, 1);
	wait_for_a_later_one(&shared, 3 * page);
	CHECK(file_bytes(&shared) == 3 * page);
	CHECK(read_at(&shared, 5) == 1 && read_at(&shared, page - 1) == 2);
	CHECK(read_at(&shared, page + 5) == 3 && read_at(&shared, 2 * page) == 4);
	tear_down_shared(&shared);
}

static void a_write_that_races_with_the_drop_is_judged_once_and_kept(void)
{
	uint64_t violations = 0;
	struct shared shared;

	set_up_shared(&shared, false, true);
	for (uint64_t round = 0; round < 8; round++) {
		take(&shared, 0, SIZE);
		for (uint64_t at = 0; at < SIZE; at += PAGE)
			CHECK(read_at(&shared, at) == 0);
		/* The last are there, protected, and go one after the other now. */
		for (uint64_t at = SIZE - 64 * PAGE; at < SIZE; at += PAGE)
			write_at(&shared, at + 1, (uint8_t)(at / PAGE));
		for (uint64_t at = SIZE - 64 * PAGE; at < SIZE; at += PAGE)
			CHECK(read_at(&shared, at + 1) == (uint8_t)(at / PAGE));
		violations += PAGES + 64;
		CHECK(stats_of(&shared.setup).violations == violations);
		wait_until_file_has(&shared, 64 * PAGE);
	}
	CHECK(stats_of(&shared.setup).failed == 0);
	tear_down_shared(&shared);
}

/* The first engine knows no file, as one that was killed before it could drop what it lent. */
static void zeros_of_an_engine_that_was_killed_are_dropped_by_the_next(bool huge)
{
	struct uffdb_engine_config config;
	struct shared shared;
	struct setup *setup = &shared.setup;

	set_up_shared(&shared, huge, false);
	take(&shared, 0, SIZE);
	for (uint64_t at = 0; at < SIZE; at += shared.page)
		CHECK(read_at(&shared, at) == 0);
	CHECK(file_bytes(&shared) == SIZE);
	uffdb_engine_destroy(setup->engine);
	config = config_of(&shared, true);
	config.uffd = setup->uffd;
	config.pidfd = setup->pidfd;
	config.pagemap_fd = setup->pagemap;
	config.mem_fd = setup->mem;
	config.pid = getpid();
	config.write_protect = true;
	config.ring_records = 1 << 10;
	CHECK(!uffdb_engine_create(&config, setup->ledger, &setup->engine));
	CHECK(!uffdb_engine_resume(setup->engine, false));
	CHECK(!uffdb_engine_start(setup->engine));
	wait_until_file_has(&shared, 0);
	CHECK(uffdb_ledger_pages(setup->ledger) == PAGES);
	CHECK(read_at(&shared, 1) == 0);
	CHECK(stats_of(setup).actions[UFFDB_ACTION_ZERO_READ] == 1);
	tear_down_shared(&shared);
}

/* They are in no file; whoever has them zapped is told of them. */
static void zeros_in_private_huge_pages_are_to_be_zapped(void)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED;
	struct uffdb_engine_config config = config_of(&(struct shared){0}, false);
	struct uffdb_range found;
	struct setup setup;
	uint64_t news;

	open_fds(&setup, WANTED_SHARED);
	setup.memory = map_aligned(SIZE);
	CHECK(mmap(setup.memory, SIZE, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED);
	make_engine_over(&setup, SIZE, UFFDB_BLOCK_HUGETLB, config);
	CHECK(!uffdb_engine_start(setup.engine));
	inflate(&setup, 0, SIZE);
	CHECK(setup.memory[HUGE + 5] == 0);
	while (!uffdb_engine_hold_zeros(setup.engine, &found, 1))
		/* It is put there a moment later. */
		CHECK(poll(&(struct pollfd){.fd = uffdb_engine_news_fd(setup.engine),
					    .events = POLLIN},
			   1, -1) == 1 &&
		      read(uffdb_engine_news_fd(setup.engine), &news, sizeof(news)) > 0);
	CHECK(found.start == address(&setup) + HUGE && found.len == HUGE);
	CHECK(!madvise(setup.memory + HUGE, HUGE, MADV_DONTNEED));
	uffdb_engine_go_on(setup.engine);
	CHECK(setup.memory[HUGE + 5] == 0);
	((volatile uint8_t *)setup.memory)[HUGE + 5] = 1;
	CHECK(setup.memory[HUGE + 5] == 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_ZERO_READ] == 1);
	CHECK(stats_of(&setup).actions[UFFDB_ACTION_GRANT] == 1);
	CHECK(stats_of(&setup).violations == 2);
	tear_down(&setup);
	munmap(setup.memory, SIZE);
}

static void run(bool huge)
{
	reading_all_of_the_balloon_costs_nothing_in_the_end(huge);
	what_was_granted_deflated_or_written_meanwhile_stays(huge);
	zeros_of_an_engine_that_was_killed_are_dropped_by_the_next(huge);
}

/* With any argument: on huge pages, which whoever gives it has reserved for this. */
int main(int argc, char **argv)
{
	(void)argv;
	if (argc > 1) {
		zeros_in_private_huge_pages_are_to_be_zapped();
		run(true);
	} else {
		a_write_that_races_with_the_drop_is_judged_once_and_kept();
		run(false);
	}
	return 0;
}
