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

enum uffdb_role {
	UFFDB_ROLE_VCPU,
	UFFDB_ROLE_HOST_READER,
	UFFDB_ROLE_DEVICE_WRITER,
};

enum uffdb_verdict {
	UFFDB_ORDINARY,
	UFFDB_GRANTED,
	UFFDB_VIOLATION,
};

enum uffdb_contract_kind {
	UFFDB_CONTRACT_TOLD,
	UFFDB_CONTRACT_CAP,
};

struct uffdb_contract {
	uint32_t kind;
	uint32_t in_grace;
	uint64_t floor_bytes;
	uint64_t grace_ns;
	uint64_t grace_bytes;
	uint64_t grace_until_ns;
	uint64_t grace_left_bytes;
};

struct uffdb_judged {
	uint64_t ballooned_bytes;
	uint64_t touched_bytes;
	uint64_t now_ns;
	uint32_t role;
	uint32_t reserved;
};

void uffdb_contract_reset(struct uffdb_contract *contract, uint64_t now_ns);

uint32_t uffdb_contract_judge(struct uffdb_contract *contract, const struct uffdb_judged *touch);

enum uffdb_rung_kind {
	UFFDB_RUNG_OBSERVE = 1,
	UFFDB_RUNG_ZERO_READ,
	UFFDB_RUNG_THROTTLE,
	UFFDB_RUNG_FREEZE,
	UFFDB_RUNG_PAUSE,
	UFFDB_RUNG_POISON,
	UFFDB_RUNG_KILL,
};

struct uffdb_rung {
	uint32_t kind;
	uint32_t reserved;
	uint64_t hold_ns;
	uint64_t bytes_per_s;
	uint64_t burst_bytes;
};

enum uffdb_action {
	UFFDB_ACTION_NONE,
	UFFDB_ACTION_GRANT,
	UFFDB_ACTION_ZERO_READ,
	UFFDB_ACTION_THROTTLE,
	UFFDB_ACTION_FREEZE,
	UFFDB_ACTION_PAUSE,
	UFFDB_ACTION_POISON,
	UFFDB_ACTION_KILL,
	UFFDB_ACTION_RELEASE,
};

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
	uint64_t around_bytes;
	uint64_t window_budget;
	struct uffdb_contract contract;
	struct uffdb_rung rungs[8];
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
	uint8_t role;
	uint8_t reserved[16];
};

struct uffdb_stats {
	uint64_t ordinary;
	uint64_t granted;
	uint64_t violations;
	uint64_t host_reads;
	uint64_t actions[9];
	uint64_t slipped_writes;
	uint64_t exists;
	uint64_t retried;
	uint64_t gone;
	uint64_t failed;
	uint64_t together;
	uint64_t around_pages;
	uint64_t events_posted;
	uint64_t events_dropped;
	uint64_t parked;
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

int64_t uffdb_engine_inflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

int uffdb_engine_reset(struct uffdb_engine *engine);

int uffdb_engine_tidy(struct uffdb_engine *engine);

int uffdb_engine_set_vcpus(struct uffdb_engine *engine, const int32_t *tids, size_t nr);

void uffdb_engine_contract(struct uffdb_engine *engine, struct uffdb_contract *out);

struct uffdb_parked {
	uint64_t id;
	uint64_t hva;
	uint64_t size;
	uint64_t since_ns;
	uint64_t deadline_ns;
	uint32_t tid;
	uint8_t write;
	uint8_t action;
	uint8_t reserved[2];
};

size_t uffdb_engine_parked(struct uffdb_engine *engine, struct uffdb_parked *out, size_t nr);

enum uffdb_resolution {
	UFFDB_RESOLVE_GRANT,
	UFFDB_RESOLVE_NEXT,
	UFFDB_RESOLVE_POISON,
};

int uffdb_engine_resolve(struct uffdb_engine *engine, uint64_t id, uint32_t how);

int uffdb_engine_release(struct uffdb_engine *engine, uint32_t tid);

int uffdb_engine_event_fd(const struct uffdb_engine *engine);

size_t uffdb_engine_drain(struct uffdb_engine *engine, struct uffdb_event *events, size_t nr);

void uffdb_engine_stats(const struct uffdb_engine *engine, struct uffdb_stats *stats);

uint64_t uffdb_engine_latency(const struct uffdb_engine *engine, uint32_t permille);

struct uffdb_bucket {
	uint64_t top;
	uint64_t count;
};

size_t uffdb_engine_latencies(const struct uffdb_engine *engine, struct uffdb_bucket *out,
			      size_t nr);

enum uffdb_bench_kind {
	UFFDB_BENCH_MANPAGE,
	UFFDB_BENCH_BEST,
};

struct uffdb_bench_handler;

int uffdb_bench_handler_start(int uffd, uint32_t kind, uint64_t page_size, int cpu,
			      struct uffdb_bench_handler **out);

uint64_t uffdb_bench_handler_stop(struct uffdb_bench_handler *handler);

int64_t uffdb_bench_scatter(struct uffdb_ledger *ledger, uint64_t fragments, uint64_t seed);

uint64_t uffdb_bench_lookups(const struct uffdb_ledger *ledger, uint64_t count, uint64_t span,
			     bool dependent);

struct uffdb_bench_plan {
	uint64_t changes;
	uint64_t scratch_ns;
	uint64_t change_p50_ns;
	uint64_t change_p99_ns;
	uint64_t change_max_ns;
	uint64_t windows;
	uint64_t most_windows;
	uint64_t needed_bytes;
	uint64_t armed_bytes;
	uint64_t memory_bytes;
};

int uffdb_bench_plan(const struct uffdb_ledger *ledger, uint64_t budget, uint64_t changes,
		     struct uffdb_bench_plan *result);
