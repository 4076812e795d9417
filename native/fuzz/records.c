// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Any bytes as a ring of perf records. Built with libFuzzer by `make fuzz`; the C tests run the
 * same function on the corpus and on what a seeded generator makes of it.
 *
 * The input: where in the ring it begins (two bytes, in units of 8), then the ring's bytes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "records.h"

#define RING	      4096u
#define MOST	      (RING / sizeof(uint64_t)) /* a record has a header of 8 bytes at least */
#define ENTER_MADVISE 1
#define ENTER_FALLOC  3
#define FILE_HVA      0x700000000000ull
#define FILE_BYTES    (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "not so: %s\n", what);
	abort();
}

static void check_record(const struct uffdb_traced *record)
{
	expect(record->kind <= UFFDB_TRACED_LOST, "the kind is one of ours");
}

static bool is_in_file(const struct uffdb_traced *record)
{
	return record->hva >= FILE_HVA && record->len <= FILE_BYTES &&
	       record->hva - FILE_HVA <= FILE_BYTES - record->len;
}

/* Walk the ring once; return the number of records. */
static size_t walk(const struct uffdb_trace *trace, const struct uffdb_perf_ring *ring,
		   uint64_t tail)
{
	struct uffdb_traced record;
	uint64_t before = tail;
	size_t nr = 0;

	while (uffdb_next_record(trace, ring, &tail, &record)) {
		expect(tail > before && tail <= ring->head, "the tail moves on, and not too far");
		expect(++nr <= MOST, "a ring holds no more records than headers");
		check_record(&record);
		if (!trace->config.enter_madvise && record.kind == UFFDB_TRACED_DISCARD)
			expect(is_in_file(&record), "a hole is in the file that it was punched in");
		before = tail;
	}
	expect(tail == ring->head, "nothing is left unread");
	return nr;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct uffdb_traced_file file = {
		.fd = 7, .offset = 4096, .hva = FILE_HVA, .len = FILE_BYTES};
	struct uffdb_trace trace = {.files = &file, .config.nr_files = 1};
	struct uffdb_perf_ring ring = {.bytes = RING};
	uint64_t tail;
	char *bytes;

	if (size < 2)
		return 0;
	/* Positions count on from far: they are cut to the ring, and never wrap. */
	tail = (1ull << 40) + (uint64_t)(data[0] | data[1] << 8) % (RING / 8) * 8;
	data += 2;
	size = size - 2 < RING ? size - 2 : RING;
	bytes = malloc(RING); /* its own allocation: reading beyond is seen */
	if (!bytes)
		return 0;
	memset(bytes, 0xa5, RING);
	for (size_t i = 0; i < size; i++)
		bytes[(tail + i) % RING] = (char)data[i];
	ring.data = bytes;
	ring.head = tail + size;
	trace.config.enter_fallocate = ENTER_FALLOC;
	walk(&trace, &ring, tail);
	trace.config.enter_madvise = ENTER_MADVISE;
	walk(&trace, &ring, tail);
	free(bytes);
	return 0;
}
