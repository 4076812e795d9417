/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Records of a trace, read: pure, of any bytes, whatever they say. */
#ifndef UFFDB_RECORDS_H
#define UFFDB_RECORDS_H

#include "trace.h"

/* A ring of perf's (perf_event_open(2)); positions count on, and never wrap. */
struct uffdb_perf_ring {
	const char *data;
	size_t bytes; /* a power of two, and more than a record of ours has */
	uint64_t head;
};

/*
 * Take the next record that is ours from a ring; others are passed over.
 * @trace: its config says what is ours; its files are guest memory
 * @tail:  in and out: where the next record begins; never moved beyond the head
 *
 * Return: whether there was one.
 */
bool uffdb_next_record(const struct uffdb_trace *trace, const struct uffdb_perf_ring *ring,
		       uint64_t *tail, struct uffdb_traced *out);

#endif
