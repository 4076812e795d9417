/* SPDX-License-Identifier: GPL-2.0-or-later */
const char *uffdb_version(void);

#define UFFDB_MODE_MISSING ...
#define UFFDB_MODE_WP	   ...
#define UFFDB_MODE_MINOR   ...

#define UFFDB_DONTWAKE	   ...
#define UFFDB_WRITEPROTECT ...

int uffdb_uffd_open(int dev_fd);

int uffdb_uffd_api(int uffd, uint64_t features, uint64_t *known);

int uffdb_uffd_register(int uffd, uint64_t hva, uint64_t len, uint32_t modes);

int uffdb_uffd_unregister(int uffd, uint64_t hva, uint64_t len);

int uffdb_uffd_zeropage(int uffd, uint64_t hva, uint64_t len, uint32_t flags);

int uffdb_uffd_copy(int uffd, uint64_t hva, const void *src, uint64_t len, uint32_t flags);

int uffdb_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint32_t flags);

int uffdb_uffd_poison(int uffd, uint64_t hva, uint64_t len, uint32_t flags);

int uffdb_uffd_writeprotect(int uffd, uint64_t hva, uint64_t len, bool on);

int uffdb_uffd_wake(int uffd, uint64_t hva, uint64_t len);

int uffdb_pidfd_open(int pid);

int64_t uffdb_process_read(int pid, uint64_t hva, void *into, size_t len);

int uffdb_pidfd_getfd(int pidfd, int remote_fd);

struct uffdb_range {
	uint64_t start;
	uint64_t len;
};

int64_t uffdb_process_madvise(int pidfd, const struct uffdb_range *ranges, size_t nr, int advice);

int uffdb_punch_hole(int fd, uint64_t offset, uint64_t len);

int uffdb_resident(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out, size_t nr,
		   uint64_t *next);

uint32_t uffdb_xsave_size(uint64_t features);

#define UFFDB_BLOCK_SHARED  ...
#define UFFDB_BLOCK_HUGETLB ...

struct uffdb_block {
	uint64_t hva;
	uint64_t size;
	uint32_t flags;
	uint32_t reserved;
};

struct uffdb_ledger;

int uffdb_ledger_create(const struct uffdb_block *blocks, size_t nr, struct uffdb_ledger **out);
void uffdb_ledger_destroy(struct uffdb_ledger *ledger);

int64_t uffdb_ledger_set(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

int64_t uffdb_ledger_clear(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

int uffdb_ledger_test(const struct uffdb_ledger *ledger, uint64_t hva);

uint64_t uffdb_ledger_pages(const struct uffdb_ledger *ledger);

int uffdb_ledger_next(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t end,
		      struct uffdb_range *out);

enum uffdb_rung {
	UFFDB_RUNG_OBSERVE = 1,
	UFFDB_RUNG_ZERO_READ,
	UFFDB_RUNG_KILL,
};

enum uffdb_verdict {
	UFFDB_ORDINARY,
	UFFDB_GRANTED,
	UFFDB_VIOLATION,
};

enum uffdb_action {
	UFFDB_ACTION_NONE,
	UFFDB_ACTION_GRANT,
	UFFDB_ACTION_ZERO_READ,
	UFFDB_ACTION_KILL,
};

#define UFFDB_MAX_RUNGS ...

struct uffdb_engine_config {
	int uffd;
	int pidfd;
	int pagemap_fd;
	int pid;
	bool write_protect;
	bool write_protect_shared;
	bool follow_cpu;
	uint32_t ring_records;
	uint32_t nr_rungs;
	uint32_t rungs[8];
};

struct uffdb_event {
	uint64_t seq;
	uint64_t time_ns;
	uint64_t hva;
	uint64_t size;
	uint64_t answer_ns;
	uint32_t tid;
	uint8_t write;
	uint8_t verdict;
	uint8_t action;
	uint8_t host;
	uint8_t reserved[16];
};

struct uffdb_stats {
	uint64_t ordinary;
	uint64_t granted;
	uint64_t violations;
	uint64_t host_reads;
	uint64_t action_grant;
	uint64_t action_zero_read;
	uint64_t action_kill;
	uint64_t slipped_writes;
	uint64_t exists;
	uint64_t retried;
	uint64_t gone;
	uint64_t failed;
	uint64_t events_posted;
	uint64_t events_dropped;
	uint64_t moves;
	uint64_t windows;
	uint64_t armed_bytes;
};

struct uffdb_engine;

int uffdb_engine_create(const struct uffdb_engine_config *config, struct uffdb_ledger *ledger,
			struct uffdb_engine **out);

void uffdb_engine_destroy(struct uffdb_engine *engine);

int uffdb_engine_start(struct uffdb_engine *engine);

void uffdb_engine_stop(struct uffdb_engine *engine);

int uffdb_engine_arm(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

int uffdb_engine_set_vcpus(struct uffdb_engine *engine, const int32_t *tids, size_t nr);

int uffdb_engine_event_fd(const struct uffdb_engine *engine);

size_t uffdb_engine_drain(struct uffdb_engine *engine, struct uffdb_event *events, size_t nr);

void uffdb_engine_stats(const struct uffdb_engine *engine, struct uffdb_stats *stats);

uint64_t uffdb_engine_latency(const struct uffdb_engine *engine, uint32_t permille);
