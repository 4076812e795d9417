/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the target's balloon device does, as its system calls tell, or its own log. trace_choice.c
 * chooses where the records come from: trace_bpf.c, trace_perf.c or trace_log.c.
 */
#ifndef UFFDB_TRACE_H
#define UFFDB_TRACE_H

#include "uffdballoon.h"

enum uffdb_traced_kind {
	UFFDB_TRACED_DISCARD,  /* MADV_DONTNEED, MADV_REMOVE or a hole punched */
	UFFDB_TRACED_WILLNEED, /* MADV_WILLNEED: QEMU's balloon_deflate_page() */
	UFFDB_TRACED_LOST,     /* @len records are not here */
	/* By a log alone. */
	UFFDB_TRACED_TOGGLE, /* a page of 4 KiB that was given up, or was taken back: either */
	UFFDB_TRACED_ACTUAL, /* the driver says that @len pages are in its balloon; before: @hva */
};

struct uffdb_traced {
	/*
	 * CLOCK_MONOTONIC; never too late. By BPF it may be as early as the last tick, by a log as
	 * the last drain: trace_log.c.
	 */
	uint64_t time_ns;
	uint64_t hva;
	uint64_t len;
	uint32_t kind;
};

typedef void uffdb_traced_fn(void *argument, const struct uffdb_traced *record);

/*
 * Hand over, in the order of time, every record that was complete when this was
 * called. Of a call that returned before, there is a record, or one that tells of its loss.
 *
 * Context: one thread at a time.
 * Return: number of records.
 */
uint64_t uffdb_trace_drain(struct uffdb_trace *trace, uffdb_traced_fn *take, void *argument);

/* A source begins with this; its functions are what the public ones of a trace say. */
struct uffdb_trace {
	const struct uffdb_trace_source *source;
	struct uffdb_trace_config config;
	struct uffdb_traced_file *files; /* copies of the config's */
	struct uffdb_traced_ram *ram;
	int bpf_error; /* why it is not BPF; 0 when nobody tried */
};

struct uffdb_trace_source {
	const char *name;
	uint64_t (*drain)(struct uffdb_trace *trace, uffdb_traced_fn *take, void *argument);
	int (*fd)(const struct uffdb_trace *trace);
	void (*hush)(struct uffdb_trace *trace);
	int (*quiet)(struct uffdb_trace *trace);
	void (*destroy)(struct uffdb_trace *trace);
};

int uffdb_trace_create_bpf(const struct uffdb_trace_config *config, struct uffdb_trace **out);
int uffdb_trace_create_perf(const struct uffdb_trace_config *config, struct uffdb_trace **out);
int uffdb_trace_create_log(const struct uffdb_trace_config *config, struct uffdb_trace **out);

/* trace.c: what every source has; uffdb_trace_destroy() releases it. */
int uffdb_trace_init(struct uffdb_trace *trace, const struct uffdb_trace_source *source,
		     const struct uffdb_trace_config *config);

/*
 * records.c: make a record of a madvise() or fallocate(); false when it gives up or takes back
 * none of the guest's memory. @behaviour is an advice of madvise.
 */
bool uffdb_trace_of_advice(struct uffdb_traced *record, uint64_t hva, uint64_t len,
			   uint32_t behaviour);
bool uffdb_trace_of_hole(const struct uffdb_trace *trace, struct uffdb_traced *record, int fd,
			 int mode, uint64_t offset, uint64_t len);

#endif
