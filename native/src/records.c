// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/perf_event.h>
#include <string.h>

#include "records.h"
#include "uffdballoon.h"

/* asm-generic/mman-common.h; Debian 12's headers lack the last. */
#define WILLNEED	3
#define DONTNEED	4
#define REMOVE		9
#define DONTNEED_LOCKED 24

#define LARGEST 256 /* bytes of a record of ours; they are of some 80 */

/* The tracepoints' fields, as their `format` files have them; checked before by the caller. */
struct enter {
	uint16_t type;
	uint8_t flags, preempt;
	int32_t tid;
	int32_t number;
	int32_t padding;
	uint64_t arguments[4];
};

/* PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_RAW */
struct sample {
	struct perf_event_header header;
	uint32_t pid, tid;
	uint64_t time_ns;
	uint32_t raw_size;
	char raw[];
} __attribute__((packed));

/* PERF_RECORD_LOST with its sample_id */
struct lost {
	struct perf_event_header header;
	uint64_t id, lost;
	uint32_t pid, tid;
	uint64_t time_ns;
};

union record {
	struct perf_event_header header;
	struct sample sample;
	struct lost lost;
	char bytes[LARGEST];
};

static void copy_out(const struct uffdb_perf_ring *ring, uint64_t tail, void *into, size_t size)
{
	size_t at = tail & (ring->bytes - 1), first = ring->bytes - at;

	if (first > size)
		first = size;
	memcpy(into, ring->data + at, first);
	memcpy((char *)into + first, ring->data, size - first);
}

bool uffdb_trace_of_advice(struct uffdb_traced *record, uint64_t hva, uint64_t len,
			   uint32_t behaviour)
{
	switch (behaviour) {
	case WILLNEED:
		record->kind = UFFDB_TRACED_WILLNEED;
		break;
	case DONTNEED:
	case REMOVE:
	case DONTNEED_LOCKED:
		record->kind = UFFDB_TRACED_DISCARD;
		break;
	default:
		return false;
	}
	record->hva = hva;
	record->len = len;
	return true;
}

bool uffdb_trace_of_hole(const struct uffdb_trace *trace, struct uffdb_traced *record, int fd,
			 int mode, uint64_t offset, uint64_t len)
{
	if (!(mode & FALLOC_FL_PUNCH_HOLE))
		return false;
	for (size_t i = 0; i < trace->config.nr_files; i++) {
		const struct uffdb_traced_file *file = &trace->files[i];

		if (file->fd != fd || offset < file->offset || len > file->len ||
		    offset - file->offset > file->len - len)
			continue;
		record->kind = UFFDB_TRACED_DISCARD;
		record->hva = file->hva + (offset - file->offset);
		record->len = len;
		return true;
	}
	return false;
}

static bool decode_sample(const struct uffdb_trace *trace, const struct sample *sample,
			  struct uffdb_traced *record)
{
	const struct uffdb_trace_config *config = &trace->config;
	struct enter enter = {0};

	if (sample->header.size < sizeof(*sample) ||
	    sample->raw_size > sample->header.size - sizeof(*sample))
		return false;
	memcpy(&enter, sample->raw,
	       sample->raw_size < sizeof(enter) ? sample->raw_size : sizeof(enter));
	/* An id of 0 in the configuration stands for: not watched. */
	if (!enter.type)
		return false;
	*record = (struct uffdb_traced){.time_ns = sample->time_ns};
	if (enter.type == config->enter_madvise)
		return uffdb_trace_of_advice(record, enter.arguments[0], enter.arguments[1],
					     (uint32_t)enter.arguments[2]);
	return enter.type == config->enter_fallocate &&
	       uffdb_trace_of_hole(trace, record, (int)enter.arguments[0], (int)enter.arguments[1],
				   enter.arguments[2], enter.arguments[3]);
}

static bool decode(const struct uffdb_trace *trace, union record *record, size_t size,
		   struct uffdb_traced *out)
{
	if (record->header.type == PERF_RECORD_SAMPLE) {
		record->header.size = (uint16_t)(size < LARGEST ? size : LARGEST);
		return decode_sample(trace, &record->sample, out);
	}
	if (record->header.type != PERF_RECORD_LOST || size < sizeof(record->lost))
		return false;
	*out = (struct uffdb_traced){
		.time_ns = record->lost.time_ns,
		.len = record->lost.lost,
		.kind = UFFDB_TRACED_LOST,
	};
	return true;
}

bool uffdb_next_record(const struct uffdb_trace *trace, const struct uffdb_perf_ring *ring,
		       uint64_t *tail, struct uffdb_traced *out)
{
	union record record;

	while (*tail != ring->head) {
		uint64_t left = ring->head - *tail;
		size_t size = 0;

		if (left >= sizeof(record.header)) {
			copy_out(ring, *tail, &record.header, sizeof(record.header));
			size = record.header.size;
		}
		if (size < sizeof(record.header) || size > left) {
			/* Never seen; to go on would be to read in circles. */
			*tail = ring->head;
			return false;
		}
		copy_out(ring, *tail, &record, size < LARGEST ? size : LARGEST);
		*tail += size;
		if (decode(trace, &record, size, out))
			return true;
	}
	return false;
}
