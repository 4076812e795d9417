// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Two small BPF programs at the tracepoints of the system calls write a record of each call
 * of the target to one ring (Documentation/bpf/ringbuf.rst). What one CPU writes after another
 * comes after it in the ring: a record of a deflate is there before the touch that follows it.
 *
 * A program at a tracepoint runs for every process of the host, and looks at its pid first. A
 * tracepoint takes 64 programs (BPF_TRACE_MAX_PROGS of kernel/trace/bpf_trace.c): the manager
 * after that is refused with E2BIG, and makes do with perf.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/falloc.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "trace.h"
#include "uffdballoon.h"

#define INIT_PID_NAMESPACE 0xEFFFFFFCu /* PROC_PID_INIT_INO of include/linux/proc_ns.h */
#define BUSY_PATIENCE_NS   1000000000ull
#define MAX_OUTS	   4
#define PROGRAMS	   2
#define MAGIC		   0x3263617274646675ull /* of this layout */

/* Where the tracepoints' `format` files put the arguments; checked before by the caller. */
#define ARGUMENT(i) (16 + 8 * (i))

enum event {
	ADVICE,
	HOLE,
};

struct record {
	uint64_t start; /* address, or offset in a file */
	uint64_t len;
	uint64_t time_ns;
	uint32_t extra; /* advice, or fd */
	uint32_t event;
};

/* Shared with the programs. */
struct shared {
	_Atomic uint32_t bell_is_up; /* the next record shall wake who waits */
	uint32_t reserved;
	_Atomic uint64_t lost;
	/*
	 * A time that has passed: that of the last drain, of the record that rang the bell, or of
	 * the first one of a tick. To ask the clock for each record costs as much as all the rest,
	 * on a virtual machine.
	 */
	_Atomic uint64_t at_least_ns;
	uint64_t tick; /* jiffies of the last record */
	/* For who goes on with it. */
	uint64_t magic, pid, ring_bytes;
};

struct bpf_trace {
	struct uffdb_trace trace;
	size_t ring_bytes;
	int ring_fd;
	int shared_fd;
	int event_fds[PROGRAMS];
	struct shared *shared;
	_Atomic uint64_t *consumed;
	const _Atomic uint64_t *produced; /* followed by the data, mapped twice in a row */
	uint64_t lost;			  /* as last told */
	_Atomic bool listens; /* somebody waits for the bell, and is to be woken by it */
};

struct program {
	struct bpf_insn code[64];
	size_t nr;
	size_t outs[MAX_OUTS]; /* jumps to the end */
	size_t nr_outs;
};

static int bpf(enum bpf_cmd command, union bpf_attr *attr)
{
	int result = (int)syscall(SYS_bpf, command, attr, sizeof(*attr));

	return result < 0 ? -errno : result;
}

static size_t emit(struct program *program, uint8_t code, int to, int from, int off, int immediate)
{
	program->code[program->nr] = (struct bpf_insn){
		.code = code,
		.dst_reg = to & 0xf,
		.src_reg = from & 0xf,
		.off = (int16_t)off,
		.imm = immediate,
	};
	return program->nr++;
}

static void move(struct program *program, int to, int from)
{
	emit(program, BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}

static void set(struct program *program, int to, int value)
{
	emit(program, BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}

static void load(struct program *program, int size, int to, int from, int off)
{
	emit(program, (uint8_t)(BPF_LDX | BPF_MEM | size), to, from, off, 0);
}

static void store(struct program *program, int size, int to, int off, int from)
{
	emit(program, (uint8_t)(BPF_STX | BPF_MEM | size), to, from, off, 0);
}

static void emit_call(struct program *program, int helper)
{
	emit(program, BPF_JMP | BPF_CALL, 0, 0, 0, helper);
}

/* A map, or the address of its value at @off. */
static void load_map(struct program *program, int to, int pseudo, int fd, int off)
{
	emit(program, BPF_LD | BPF_DW | BPF_IMM, to, pseudo, 0, fd);
	emit(program, 0, 0, 0, 0, off);
}

/* A jump forward whose end is not known yet. */
static size_t jump(struct program *program, int condition, int reg, int value)
{
	return emit(program, (uint8_t)(BPF_JMP | condition | BPF_K), reg, 0, 0, value);
}

static size_t jump_if_equal(struct program *program, int reg, int other)
{
	return emit(program, BPF_JMP | BPF_JEQ | BPF_X, reg, other, 0, 0);
}

static void land(struct program *program, size_t from)
{
	program->code[from].off = (int16_t)(program->nr - from - 1);
}

static void out_if(struct program *program, int condition, int reg, int value)
{
	program->outs[program->nr_outs++] = jump(program, condition, reg, value);
}

/* Go on only for a call of the target. */
static void only_target(struct program *program, int pid)
{
	emit_call(program, BPF_FUNC_get_current_pid_tgid);
	emit(program, BPF_ALU64 | BPF_RSH | BPF_K, BPF_REG_0, 0, 0, 32);
	out_if(program, BPF_JNE, BPF_REG_0, pid);
}

static void store_argument(struct program *program, int size, int index, size_t field)
{
	load(program, BPF_DW, BPF_REG_1, BPF_REG_6, ARGUMENT(index));
	store(program, size, BPF_REG_9, (int)field, BPF_REG_1);
}

/* Where the arguments of a call are that make up a record. */
struct call_shape {
	enum event event;
	int start, len, extra;
};

/* Write the record, and end. r6 is the context. */
static void finish(const struct bpf_trace *trace, struct program *program, struct call_shape shape)
{
	size_t lost, silent, same;

	load_map(program, BPF_REG_1, BPF_PSEUDO_MAP_FD, trace->ring_fd, 0);
	set(program, BPF_REG_2, sizeof(struct record));
	set(program, BPF_REG_3, 0);
	emit_call(program, BPF_FUNC_ringbuf_reserve);
	lost = jump(program, BPF_JEQ, BPF_REG_0, 0);
	move(program, BPF_REG_9, BPF_REG_0);
	store_argument(program, BPF_DW, shape.start, offsetof(struct record, start));
	store_argument(program, BPF_DW, shape.len, offsetof(struct record, len));
	store_argument(program, BPF_W, shape.extra, offsetof(struct record, extra));
	emit(program, BPF_ST | BPF_MEM | BPF_W, BPF_REG_9, 0, offsetof(struct record, event),
	     (int)shape.event);
	load_map(program, BPF_REG_7, BPF_PSEUDO_MAP_VALUE, trace->shared_fd, 0);
	/* A full barrier: who puts the bell up looks for records after that, as we do before. */
	set(program, BPF_REG_1, 0);
	emit(program, BPF_STX | BPF_ATOMIC | BPF_W, BPF_REG_7, BPF_REG_1,
	     offsetof(struct shared, bell_is_up), BPF_XCHG);
	set(program, BPF_REG_8, BPF_RB_NO_WAKEUP);
	silent = jump(program, BPF_JEQ, BPF_REG_1, 0);
	emit_call(program, BPF_FUNC_ktime_get_ns);
	store(program, BPF_DW, BPF_REG_7, offsetof(struct shared, at_least_ns), BPF_REG_0);
	set(program, BPF_REG_8, BPF_RB_FORCE_WAKEUP);
	land(program, silent);
	emit_call(program, BPF_FUNC_jiffies64);
	load(program, BPF_DW, BPF_REG_1, BPF_REG_7, offsetof(struct shared, tick));
	same = jump_if_equal(program, BPF_REG_0, BPF_REG_1);
	store(program, BPF_DW, BPF_REG_7, offsetof(struct shared, tick), BPF_REG_0);
	emit_call(program, BPF_FUNC_ktime_get_ns);
	store(program, BPF_DW, BPF_REG_7, offsetof(struct shared, at_least_ns), BPF_REG_0);
	land(program, same);
	load(program, BPF_DW, BPF_REG_1, BPF_REG_7, offsetof(struct shared, at_least_ns));
	store(program, BPF_DW, BPF_REG_9, offsetof(struct record, time_ns), BPF_REG_1);
	move(program, BPF_REG_1, BPF_REG_9);
	move(program, BPF_REG_2, BPF_REG_8);
	emit_call(program, BPF_FUNC_ringbuf_submit);
	program->outs[program->nr_outs++] = jump(program, BPF_JA, 0, 0);
	land(program, lost);
	load_map(program, BPF_REG_7, BPF_PSEUDO_MAP_VALUE, trace->shared_fd, 0);
	set(program, BPF_REG_1, 1);
	emit(program, BPF_STX | BPF_ATOMIC | BPF_DW, BPF_REG_7, BPF_REG_1,
	     offsetof(struct shared, lost), BPF_ADD);
	for (size_t i = 0; i < program->nr_outs; i++)
		land(program, program->outs[i]);
	/* 0 would keep the tracepoint from everybody on the host who watches it by perf. */
	set(program, BPF_REG_0, 1);
	emit(program, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

static void write_enter_madvise(const struct bpf_trace *trace, struct program *program)
{
	move(program, BPF_REG_6, BPF_REG_1);
	only_target(program, trace->trace.config.pid);
	finish(trace, program, (struct call_shape){ADVICE, 0, 1, 2});
}

static void write_enter_fallocate(const struct bpf_trace *trace, struct program *program)
{
	size_t punches;

	move(program, BPF_REG_6, BPF_REG_1);
	load(program, BPF_DW, BPF_REG_1, BPF_REG_6, ARGUMENT(1));
	punches = jump(program, BPF_JSET, BPF_REG_1, FALLOC_FL_PUNCH_HOLE);
	program->outs[program->nr_outs++] = jump(program, BPF_JA, 0, 0);
	land(program, punches);
	only_target(program, trace->trace.config.pid);
	finish(trace, program, (struct call_shape){HOLE, 2, 3, 0});
}

static int load_program(const struct program *program)
{
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_TRACEPOINT,
		.insns = (uintptr_t)program->code,
		.insn_cnt = (uint32_t)program->nr,
		.license = (uintptr_t)"GPL",
	};

	memcpy(attr.prog_name, "uffdballoon", sizeof("uffdballoon"));
	return bpf(BPF_PROG_LOAD, &attr);
}

/* The event counts nothing: it is what a program is attached by, and goes with its fd. */
static int attach(int tracepoint, const struct program *program)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
		.config = (uint64_t)tracepoint,
		.disabled = 1,
	};
	int loaded = load_program(program), event, error = 0;

	if (loaded < 0)
		return loaded;
	event = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (event < 0 || ioctl(event, PERF_EVENT_IOC_SET_BPF, loaded))
		error = -errno;
	if (error && event >= 0)
		close(event);
	close(loaded);
	return error ? error : event;
}

static int attach_all(struct bpf_trace *trace)
{
	const struct {
		int tracepoint;
		void (*write)(const struct bpf_trace *trace, struct program *program);
	} all[PROGRAMS] = {
		{trace->trace.config.enter_madvise, write_enter_madvise},
		{trace->trace.config.enter_fallocate, write_enter_fallocate},
	};

	for (size_t i = 0; i < PROGRAMS; i++) {
		struct program program = {0};

		if (!all[i].tracepoint)
			continue;
		all[i].write(trace, &program);
		trace->event_fds[i] = attach(all[i].tracepoint, &program);
		if (trace->event_fds[i] < 0)
			return trace->event_fds[i];
	}
	return 0;
}

static void *map(size_t bytes, int protection, int fd, off_t at)
{
	void *mapped = mmap(NULL, bytes, protection, MAP_SHARED, fd, at);

	return mapped == MAP_FAILED ? NULL : mapped;
}

static int map_shared(struct bpf_trace *trace)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	trace->shared = map(page, PROT_READ | PROT_WRITE, trace->shared_fd, 0);
	return trace->shared ? 0 : -ENOMEM;
}

static int map_ring(struct bpf_trace *trace)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	trace->consumed = map(page, PROT_READ | PROT_WRITE, trace->ring_fd, 0);
	trace->produced = map(page + 2 * trace->ring_bytes, PROT_READ, trace->ring_fd, (off_t)page);
	return trace->consumed && trace->produced ? 0 : -ENOMEM;
}

static int make_maps(struct bpf_trace *trace)
{
	int error;
	union bpf_attr ring = {
		.map_type = BPF_MAP_TYPE_RINGBUF,
		.max_entries = (uint32_t)trace->ring_bytes,
	};
	union bpf_attr shared = {
		.map_type = BPF_MAP_TYPE_ARRAY,
		.key_size = sizeof(uint32_t),
		.value_size = sizeof(struct shared),
		.max_entries = 1,
		.map_flags = BPF_F_MMAPABLE,
	};

	trace->ring_fd = bpf(BPF_MAP_CREATE, &ring);
	if (trace->ring_fd < 0)
		return trace->ring_fd;
	trace->shared_fd = bpf(BPF_MAP_CREATE, &shared);
	if (trace->shared_fd < 0)
		return trace->shared_fd;
	error = map_shared(trace);
	if (error)
		return error;
	trace->shared->at_least_ns = uffdb_now_ns(CLOCK_MONOTONIC);
	trace->shared->magic = MAGIC;
	trace->shared->pid = (uint64_t)trace->trace.config.pid;
	trace->shared->ring_bytes = trace->ring_bytes;
	return map_ring(trace);
}

static bool is_initial_pid_namespace(void)
{
	struct stat about;

	return !stat("/proc/self/ns/pid", &about) && about.st_ino == INIT_PID_NAMESPACE;
}

static bool take_record(const struct bpf_trace *trace, const struct record *record,
			struct uffdb_traced *out)
{
	*out = (struct uffdb_traced){.time_ns = record->time_ns};
	if (record->event == ADVICE)
		return uffdb_trace_of_advice(out, record->start, record->len, record->extra);
	return uffdb_trace_of_hole(&trace->trace, out, (int)record->extra, FALLOC_FL_PUNCH_HOLE,
				   record->start, record->len);
}

/*
 * The length of the record at @at, once it is whole. Its writer is a CPU that cannot be preempted;
 * what came after it may be what the caller has to know.
 */
static uint32_t wait_for_record(const void *at)
{
	const _Atomic uint32_t *head = at;
	uint32_t value = atomic_load_explicit(head, memory_order_acquire);
	uint64_t until_ns = 0;

	while (value & BPF_RINGBUF_BUSY_BIT) {
		if (!until_ns)
			until_ns = uffdb_now_ns(CLOCK_MONOTONIC) + BUSY_PATIENCE_NS;
		else if (uffdb_now_ns(CLOCK_MONOTONIC) > until_ns)
			return value;
		sched_yield();
		value = atomic_load_explicit(head, memory_order_acquire);
	}
	return value;
}

/* Hand over what was written until now; the number of records. */
static uint64_t take_all(struct bpf_trace *trace, uffdb_traced_fn *take, void *argument)
{
	const char *data = (const char *)trace->produced + sysconf(_SC_PAGESIZE);
	uint64_t at = atomic_load_explicit(trace->consumed, memory_order_relaxed), taken = 0;
	uint64_t end = atomic_load(trace->produced);

	while (at < end) {
		const char *head = data + (at & (trace->ring_bytes - 1));
		uint32_t size = wait_for_record(head);
		struct uffdb_traced record;

		if (size & BPF_RINGBUF_BUSY_BIT)
			break;
		if (!(size & BPF_RINGBUF_DISCARD_BIT) &&
		    take_record(trace, (const struct record *)(head + BPF_RINGBUF_HDR_SZ),
				&record)) {
			take(argument, &record);
			taken++;
		}
		size &= ~BPF_RINGBUF_DISCARD_BIT;
		at += (BPF_RINGBUF_HDR_SZ + size + 7) / 8 * 8;
		atomic_store_explicit(trace->consumed, at, memory_order_release);
	}
	return taken;
}

/*
 * A ring that is empty again wakes nobody, though its bell was rung: who listens would sleep
 * on, and hear nothing of what comes next. So the bell is put up again.
 */
static bool put_up_again(struct bpf_trace *trace)
{
	if (!atomic_load(&trace->listens) || atomic_load(&trace->shared->bell_is_up))
		return false;
	atomic_store(&trace->shared->bell_is_up, 1);
	return true;
}

static uint64_t bpf_drain(struct uffdb_trace *of, uffdb_traced_fn *take, void *argument)
{
	struct bpf_trace *trace = (struct bpf_trace *)of;
	uint64_t taken, lost;

	atomic_store(&trace->shared->at_least_ns, uffdb_now_ns(CLOCK_MONOTONIC));
	taken = take_all(trace, take, argument);
	while (put_up_again(trace))
		taken += take_all(trace, take, argument);
	lost = atomic_load(&trace->shared->lost);
	if (lost != trace->lost) {
		const struct uffdb_traced record = {
			.time_ns = uffdb_now_ns(CLOCK_MONOTONIC),
			.len = lost - trace->lost,
			.kind = UFFDB_TRACED_LOST,
		};

		trace->lost = lost;
		take(argument, &record);
		taken++;
	}
	return taken;
}

static int bpf_get_fd(const struct uffdb_trace *of)
{
	return ((const struct bpf_trace *)of)->ring_fd;
}

static void bpf_hush(struct uffdb_trace *of)
{
	struct bpf_trace *trace = (struct bpf_trace *)of;

	atomic_store(&trace->listens, false);
	atomic_store(&trace->shared->bell_is_up, 0);
}

static int bpf_quiet(struct uffdb_trace *of)
{
	struct bpf_trace *trace = (struct bpf_trace *)of;

	atomic_store(&trace->listens, true);
	atomic_store(&trace->shared->bell_is_up, 1);
	return 0;
}

static void unmap(const void *mapped, size_t bytes)
{
	if (mapped)
		munmap((void *)(uintptr_t)mapped, bytes);
}

static void bpf_destroy(struct uffdb_trace *of)
{
	struct bpf_trace *trace = (struct bpf_trace *)of;
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int fds[] = {trace->event_fds[0], trace->event_fds[1], trace->shared_fd, trace->ring_fd};

	unmap(trace->shared, page);
	unmap((const void *)trace->consumed, page);
	unmap((const void *)trace->produced, page + 2 * trace->ring_bytes);
	for (size_t i = 0; i < sizeof(fds) / sizeof(*fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(trace);
}

static const struct uffdb_trace_source BPF = {
	.name = "bpf",
	.drain = bpf_drain,
	.fd = bpf_get_fd,
	.hush = bpf_hush,
	.quiet = bpf_quiet,
	.destroy = bpf_destroy,
};

static int begin(const struct uffdb_trace_config *config, struct bpf_trace **out)
{
	struct bpf_trace *trace = calloc(1, sizeof(*trace));
	int error;

	if (!trace)
		return -ENOMEM;
	trace->ring_fd = trace->shared_fd = -1;
	for (size_t i = 0; i < PROGRAMS; i++)
		trace->event_fds[i] = -1;
	error = uffdb_trace_init(&trace->trace, &BPF, config);
	if (error)
		uffdb_trace_destroy(&trace->trace);
	else
		*out = trace;
	return error;
}

static int finish_with(struct bpf_trace *trace, int error, struct uffdb_trace **out)
{
	if (error)
		uffdb_trace_destroy(&trace->trace);
	else
		*out = &trace->trace;
	return error;
}

int uffdb_trace_create_bpf(const struct uffdb_trace_config *config, struct uffdb_trace **out)
{
	struct bpf_trace *trace;
	int error;

	/* The programs know the target by its pid in the initial namespace. */
	if (!is_initial_pid_namespace())
		return -EOPNOTSUPP;
	error = begin(config, &trace);
	if (error)
		return error;
	trace->ring_bytes = (size_t)sysconf(_SC_PAGESIZE);
	while (trace->ring_bytes < config->ring_bytes)
		trace->ring_bytes *= 2;
	error = make_maps(trace);
	if (!error)
		error = attach_all(trace);
	return finish_with(trace, error, out);
}

size_t uffdb_trace_fds(const struct uffdb_trace *of, int *out)
{
	const struct bpf_trace *trace = (const struct bpf_trace *)of;
	_Static_assert(UFFDB_TRACE_FDS == 2 + PROGRAMS, "an event for each program");

	if (of->source != &BPF)
		return 0;
	out[0] = trace->ring_fd;
	out[1] = trace->shared_fd;
	for (size_t i = 0; i < PROGRAMS; i++) {
		if (trace->event_fds[i] < 0)
			return 0;
		out[2 + i] = trace->event_fds[i];
	}
	return UFFDB_TRACE_FDS;
}

static int map_what_is_there(struct bpf_trace *trace)
{
	const struct shared *shared;
	int error = map_shared(trace);

	if (error)
		return error;
	shared = trace->shared;
	if (shared->magic != MAGIC || shared->pid != (uint64_t)trace->trace.config.pid ||
	    !shared->ring_bytes || shared->ring_bytes & (shared->ring_bytes - 1))
		return -EINVAL;
	trace->ring_bytes = shared->ring_bytes;
	/* What was lost before us is told once more: who was told has taken its doubts along. */
	return map_ring(trace);
}

int uffdb_trace_go_on(const struct uffdb_trace_config *config, const int *fds,
		      struct uffdb_trace **out)
{
	struct bpf_trace *trace;
	int error = begin(config, &trace);

	if (error)
		return error;
	trace->ring_fd = fds[0];
	trace->shared_fd = fds[1];
	for (size_t i = 0; i < PROGRAMS; i++)
		trace->event_fds[i] = fds[2 + i];
	error = map_what_is_there(trace);
	if (error) { /* they stay the caller's */
		trace->ring_fd = trace->shared_fd = -1;
		for (size_t i = 0; i < PROGRAMS; i++)
			trace->event_fds[i] = -1;
	}
	return finish_with(trace, error, out);
}
