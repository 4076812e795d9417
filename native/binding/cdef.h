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

int uffdb_keep_capabilities(uint64_t keep);

int uffdb_held_capabilities(uint64_t *held);

struct uffdb_sandbox {
	int target_pid;
	int target_tid;
	int target_pidfd;
	bool may_connect;
};

int uffdb_sandbox_enter(const struct uffdb_sandbox *sandbox);

int uffdb_pidfd_open(int pid);

int64_t uffdb_process_read(int pid, uint64_t hva, void *into, size_t len);

int64_t uffdb_process_write(int pid, uint64_t hva, const void *from, size_t len);

int uffdb_pidfd_getfd(int pidfd, int remote_fd);

struct uffdb_range {
	uint64_t start;
	uint64_t len;
};

int64_t uffdb_process_madvise(int pidfd, const struct uffdb_range *ranges, size_t nr, int advice);

int uffdb_punch_hole(int fd, uint64_t offset, uint64_t len);
int uffdb_file_system(int fd, uint64_t *type, uint64_t *page_bytes);

int uffdb_resident(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out, size_t nr,
		   uint64_t *next);

uint32_t uffdb_xsave_size(uint64_t features);

#define UFFDB_BLOCK_SHARED  ...
#define UFFDB_BLOCK_HUGETLB ...

#define UFFDB_MAX_NODES ...

struct uffdb_block {
	uint64_t hva;
	uint64_t size;
	uint32_t flags;
	uint32_t node;
};

struct uffdb_ledger;

int uffdb_ledger_create(const struct uffdb_block *blocks, size_t nr, struct uffdb_ledger **out);
void uffdb_ledger_destroy(struct uffdb_ledger *ledger);

int uffdb_ledger_create_in(int fd, const struct uffdb_block *blocks, size_t nr,
			   struct uffdb_ledger **out);

int64_t uffdb_ledger_set(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

int64_t uffdb_ledger_clear(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

int uffdb_ledger_test(const struct uffdb_ledger *ledger, uint64_t hva);

uint64_t uffdb_ledger_pages(const struct uffdb_ledger *ledger);

int uffdb_ledger_next(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t end,
		      struct uffdb_range *out);

void uffdb_ledger_copy(const struct uffdb_ledger *from, struct uffdb_ledger *to);

#define UFFDB_MAX_ORDER ...

struct uffdb_fragments {
	uint64_t pages;
	uint64_t runs;
	uint64_t first_page;
	uint64_t end_page;
	uint64_t lengths[64];
	uint64_t orders[...];
};

void uffdb_ledger_fragments(const struct uffdb_ledger *ledger, const struct uffdb_ledger *without,
			    const struct uffdb_range *of, uint64_t first_page,
			    struct uffdb_fragments *out);

uint64_t uffdb_ledger_node_pages(const struct uffdb_ledger *ledger, uint32_t node);

uint64_t uffdb_ledger_count(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

struct uffdb_tally {
	uint64_t broken;
	uint64_t whole;
	uint64_t untouched;
};

int uffdb_ledger_tally(const struct uffdb_ledger *ledger, uint64_t hva, struct uffdb_tally *out);

uint64_t uffdb_ledger_fine(const struct uffdb_ledger *ledger, const struct uffdb_ledger *before,
			   const struct uffdb_range *of, uint32_t order);

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
	uint64_t node_floors[...];
};

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
	UFFDB_ACTION_NO_MEMORY,
};

int uffdb_tracefs_open(void);

struct uffdb_traced_file {
	int32_t fd;
	uint32_t reserved;
	uint64_t offset;
	uint64_t hva;
	uint64_t len;
};

enum uffdb_trace_by {
	UFFDB_TRACE_BY_ANY,
	UFFDB_TRACE_BY_BPF,
	UFFDB_TRACE_BY_PERF,
};

struct uffdb_trace_config {
	int pid;
	int enter_madvise, enter_fallocate;
	uint32_t by;
	uint64_t ring_bytes;
	const struct uffdb_traced_file *files;
	size_t nr_files;
};

struct uffdb_trace;

int uffdb_trace_create(const struct uffdb_trace_config *config, struct uffdb_trace **out);

void uffdb_trace_destroy(struct uffdb_trace *trace);
#define UFFDB_TRACE_FDS ...
size_t uffdb_trace_fds(const struct uffdb_trace *trace, int *out);
int uffdb_trace_go_on(const struct uffdb_trace_config *config, const int *fds,
		      struct uffdb_trace **out);

const char *uffdb_trace_source(const struct uffdb_trace *trace, int *bpf_error);

int uffdb_trace_fd(const struct uffdb_trace *trace);

void uffdb_trace_hush(struct uffdb_trace *trace);

int uffdb_trace_quiet(struct uffdb_trace *trace);

enum uffdb_observing {
	UFFDB_OBSERVE_NONE,
	UFFDB_OBSERVE_TRACE,
	UFFDB_OBSERVE_EVENTS,
	UFFDB_OBSERVE_SCAN,
};

struct uffdb_engine_config {
	int uffd;
	int pidfd;
	int pagemap_fd;
	int mem_fd;
	int pid;
	bool write_protect;
	bool write_protect_shared;
	bool minor_shmem;
	bool minor_hugetlbfs;
	bool follow_cpu;
	uint32_t ring_records;
	uint32_t nr_rungs;
	uint64_t around_bytes;
	uint64_t window_budget;
	uint64_t huge_mappings;
	uint32_t observing;
	struct uffdb_trace *trace;
	bool follow;
	bool tell_begin;
	uint64_t memory_patience_ns;
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
	uint64_t actions[10];
	uint64_t filled_outside;
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
	uint64_t observed_inflated;
	uint64_t observed_deflated;
	uint64_t reported_bytes;
	uint64_t refused_discards;
	uint64_t lost_records;
	uint64_t resyncs;
	uint64_t doubtful;
	uint64_t late;
	uint64_t late_reads;
	uint64_t zapped_again;
	uint64_t arm_ns_max;
	uint64_t windows;
	uint64_t armed_bytes;
	uint64_t moving;
	uint64_t follow_errno;
};

struct uffdb_engine;

int uffdb_engine_create(const struct uffdb_engine_config *config, struct uffdb_ledger *ledger,
			struct uffdb_engine **out);

void uffdb_engine_destroy(struct uffdb_engine *engine);

int uffdb_engine_news_fd(const struct uffdb_engine *engine);

size_t uffdb_engine_hold_zeros(struct uffdb_engine *engine, struct uffdb_range *out, size_t nr);

void uffdb_engine_go_on(struct uffdb_engine *engine);

int64_t uffdb_engine_scan(struct uffdb_engine *engine);

#define UFFDB_ORDERS ...

size_t uffdb_engine_arrivals(const struct uffdb_engine *engine, uint64_t *out, size_t nr);

int uffdb_engine_follow(struct uffdb_engine *engine);

void uffdb_engine_inflated(struct uffdb_engine *engine);
int uffdb_engine_resume(struct uffdb_engine *engine, bool missed);

enum uffdb_keeper_word {
	UFFDB_KEEPER_SERVES = 'S',
	UFFDB_KEEPER_RELEASE = 'R',
};

struct uffdb_keeper {
	int listener;
	int pidfd;
	int manager;
	int kept[8];
	uint32_t nr_kept;
	uint64_t hold_ns;
};

int uffdb_keeper_start(const struct uffdb_keeper *keeper);

int uffdb_engine_start(struct uffdb_engine *engine);

void uffdb_engine_stop(struct uffdb_engine *engine);

int64_t uffdb_engine_inflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

int uffdb_engine_reset(struct uffdb_engine *engine, uint64_t at_ns);

int uffdb_engine_tidy(struct uffdb_engine *engine);

struct uffdb_relay;

int uffdb_relay_create(int monitor, int client, int memory, struct uffdb_relay **out);

void uffdb_relay_destroy(struct uffdb_relay *relay);

int uffdb_relay_note_in(struct uffdb_relay *relay, int memory);

void uffdb_relay_keep(struct uffdb_relay *relay, bool keeps);

void uffdb_engine_watch_resets(struct uffdb_engine *engine, struct uffdb_relay *relay);

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

struct uffdb_cell {
	uint16_t pages;
	uint16_t ballooned;
	uint16_t resident;
	uint16_t huge;
	uint8_t armed;
	uint8_t reserved[7];
	uint64_t touched_ns;
};

int uffdb_engine_cells(const struct uffdb_engine *engine, uint64_t hva, uint64_t len, uint64_t lead,
		       struct uffdb_cell *cells, size_t nr);

enum uffdb_cell_state {
	UFFDB_CELL_ABSENT,
	UFFDB_CELL_OWNED_HUGE,
	UFFDB_CELL_OWNED_4K,
	UFFDB_CELL_ARMED,
	UFFDB_CELL_BALLOONED,
	UFFDB_CELL_PARTLY,
	UFFDB_CELL_TOUCHED,
};

void uffdb_cell_states(const struct uffdb_cell *cells, size_t nr, uint64_t since_ns,
		       uint8_t *states);

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

struct uffdb_reclaimer;

struct uffdb_reclaim_config {
	int pidfd;
	int pagemap_fd;
	int kpageflags_fd;
	const struct uffdb_engine *engine;
};

int uffdb_reclaimer_create(const struct uffdb_reclaim_config *config, struct uffdb_ledger *ledger,
			   struct uffdb_reclaimer **out);

void uffdb_reclaimer_destroy(struct uffdb_reclaimer *reclaimer);

int uffdb_reclaimer_pass(struct uffdb_reclaimer *reclaimer, uint32_t max_blocks,
			 uint64_t settle_ns);

struct uffdb_reclaim_stats {
	uint64_t pending_blocks;
	uint64_t looked_blocks;
	uint64_t split_blocks;
	uint64_t failed_blocks;
	uint64_t advised_pages;
	uint64_t freed_pages;
	uint64_t calls_ns;
	uint32_t sees_folios;
	uint32_t reserved;
};

void uffdb_reclaimer_stats(const struct uffdb_reclaimer *reclaimer,
			   struct uffdb_reclaim_stats *stats);

struct uffdb_khugepaged {
	uint32_t max_ptes_none;
	bool collapses_private;
	bool collapses_shared;
};

struct uffdb_reclaim_measure {
	uint64_t ballooned_pages;
	uint64_t resident_pages;
	uint64_t pinned_pages;
	uint64_t pinned_blocks;
	uint64_t eligible_blocks;
	uint64_t unguarded_blocks;
};

int uffdb_reclaimer_measure(struct uffdb_reclaimer *reclaimer, struct uffdb_range *of,
			    uint32_t max_blocks, const struct uffdb_khugepaged *khugepaged,
			    struct uffdb_reclaim_measure *out);
