/* SPDX-License-Identifier: GPL-2.0-or-later */
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
