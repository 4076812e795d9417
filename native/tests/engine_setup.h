/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An engine on this process's own memory. */
#ifndef UFFDB_TESTS_ENGINE_SETUP_H
#define UFFDB_TESTS_ENGINE_SETUP_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "uffdballoon.h"

#define PAGE   4096ull
#define HUGE   (2ull << 20)
#define SIZE   (4 * HUGE)
#define PAGES  (SIZE / PAGE)
#define WANTED 0x101u /* UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_THREAD_ID */

struct setup {
	int uffd, pidfd, pagemap, mem;
	uint8_t *memory;
	struct uffdb_ledger *ledger;
	struct uffdb_engine *engine;
};

static inline uint64_t address(const struct setup *setup)
{
	return (uintptr_t)setup->memory;
}

static inline uint8_t *map_aligned(size_t size)
{
	uint8_t *raw = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(raw != MAP_FAILED);
	return (uint8_t *)(((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1));
}

/*
 * Keep what is huge by now, and no more of it: khugepaged, which the first MADV_HUGEPAGE of a host
 * wakes at once (mm/khugepaged.c, __khugepaged_enter()), would fill the holes that a test makes.
 */
static inline void keep_khugepaged_out(uint8_t *memory, size_t size)
{
	CHECK(!madvise(memory, size, MADV_NOHUGEPAGE));
}

static inline void open_fds(struct setup *setup, uint64_t features)
{
	uint64_t known;

	setup->uffd = uffdb_uffd_open(-1);
	if (setup->uffd == -EPERM || setup->uffd == -ENOSYS) {
		fprintf(stderr, "no userfaultfd here: %s\n", strerror(-setup->uffd));
		exit(SKIPPED);
	}
	CHECK(setup->uffd >= 0);
	CHECK(!uffdb_uffd_api(setup->uffd, features, &known));
	setup->pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	setup->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	setup->mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	CHECK(setup->pidfd >= 0 && setup->pagemap >= 0 && setup->mem >= 0);
}

/* Make an engine over @setup->memory with the contract, rungs and limits of @config. */
static inline void make_engine_over(struct setup *setup, uint64_t size, uint32_t flags,
				    struct uffdb_engine_config config)
{
	const struct uffdb_block block = {.hva = address(setup), .size = size, .flags = flags};

	CHECK(!uffdb_ledger_create(&block, 1, &setup->ledger));
	config.uffd = setup->uffd;
	config.pidfd = setup->pidfd;
	config.pagemap_fd = setup->pagemap;
	config.mem_fd = setup->mem;
	config.pid = getpid();
	config.write_protect = true;
	config.follow_cpu = true;
	if (!config.ring_records)
		config.ring_records = 1 << 14;
	CHECK(!uffdb_engine_create(&config, setup->ledger, &setup->engine));
}

static inline void make_engine(struct setup *setup, uint64_t size,
			       struct uffdb_engine_config config)
{
	open_fds(setup, WANTED);
	setup->memory = map_aligned(size);
	make_engine_over(setup, size, 0, config);
}

static inline void set_up_with(struct setup *setup, struct uffdb_engine_config config)
{
	make_engine(setup, SIZE, config);
	CHECK(!uffdb_engine_start(setup->engine));
}

static inline void set_up(struct setup *setup, uint32_t first, uint32_t second)
{
	set_up_with(setup, (struct uffdb_engine_config){
				   .nr_rungs = second ? 2 : 1,
				   .rungs = {{.kind = first}, {.kind = second}},
			   });
}

static inline void tear_down(struct setup *setup)
{
	uffdb_engine_destroy(setup->engine);
	uffdb_ledger_destroy(setup->ledger);
	close(setup->uffd);
	close(setup->pidfd);
	close(setup->mem);
	close(setup->pagemap);
}

static inline void inflate(struct setup *setup, uint64_t offset, uint64_t len)
{
	CHECK(uffdb_engine_inflate(setup->engine, address(setup) + offset, len) >= 0);
	CHECK(!madvise(setup->memory + offset, len, MADV_DONTNEED));
}

static inline struct uffdb_stats stats_of(const struct setup *setup)
{
	struct uffdb_stats stats;

	uffdb_engine_stats(setup->engine, &stats);
	return stats;
}

#endif
