// SPDX-License-Identifier: GPL-2.0-or-later
/* Records of a trace, from a ring that the test fills. */
#include <linux/perf_event.h>
#include <string.h>

#include "check.h"
#include "records.h"

#define RING	4096u
#define INPUTS	200000
#define LONGEST 600
#define HVA	0x700000001000ull
#define PAGE	4096ull

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct call {
	struct perf_event_header header;
	uint32_t pid, tid;
	uint64_t time_ns;
	uint32_t raw_size;
	uint16_t type;
	uint16_t flags;
	int32_t tid_again, number, padding;
	uint64_t arguments[4];
	uint32_t fill;
} __attribute__((packed));

static struct uffdb_traced_file file_7 = {
	.fd = 7, .offset = 8 * PAGE, .hva = HVA, .len = 16 * PAGE};
static const struct uffdb_trace TRACE = {
	.config = {.enter_madvise = 1, .enter_fallocate = 3, .nr_files = 1},
	.files = &file_7,
};

static bool next_of(const struct uffdb_trace *trace, const char *data, uint64_t head,
		    uint64_t *tail, struct uffdb_traced *record)
{
	const struct uffdb_perf_ring ring = {data, RING, head};

	return uffdb_next_record(trace, &ring, tail, record);
}

static struct call call_of(uint16_t type, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	return (struct call){
		.header = {PERF_RECORD_SAMPLE, 1, sizeof(struct call)},
		.tid = 77,
		.time_ns = 5,
		.raw_size = sizeof(struct call) - 28,
		.type = type,
		.arguments = {a, b, c, d},
	};
}

static uint64_t put(char *ring, uint64_t at, const void *record, size_t size)
{
	for (size_t i = 0; i < size; i++)
		ring[(at + i) % RING] = ((const char *)record)[i];
	return at + size;
}

/* At every place of the ring, so that it wraps in every way. */
static void calls_are_told_wherever_they_lie(void)
{
	const struct call calls[] = {
		call_of(1, HVA, PAGE, 4, 0),		     /* MADV_DONTNEED */
		call_of(1, HVA, PAGE, 3, 0),		     /* MADV_WILLNEED */
		call_of(1, HVA, PAGE, 14, 0),		     /* other advice */
		call_of(2, HVA, PAGE, 4, 0),		     /* another call */
		call_of(3, 7, 3, 9 * PAGE, 2 * PAGE),	     /* a hole in that file */
		call_of(3, 7, 3, 23 * PAGE, 2 * PAGE),	     /* that ends outside of it */
		call_of(3, 7, 3, (uint64_t)-PAGE, 9 * PAGE), /* that wraps around */
		call_of(3, 8, 3, 9 * PAGE, 2 * PAGE),	     /* another file */
		call_of(3, 7, 1, 9 * PAGE, 2 * PAGE),	     /* no hole */
	};
	const uint32_t kinds[] = {UFFDB_TRACED_DISCARD, UFFDB_TRACED_WILLNEED,
				  UFFDB_TRACED_DISCARD};

	for (uint64_t start = 0; start < RING; start += 8) {
		uint64_t tail = start, head = start;
		struct uffdb_traced record = {0};
		char ring[RING];

		for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
			head = put(ring, head, &calls[i], sizeof(calls[i]));
		for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
			CHECK(next_of(&TRACE, ring, head, &tail, &record));
			CHECK(record.kind == kinds[i] && record.time_ns == 5);
		}
		CHECK(record.hva == HVA + PAGE && record.len == 2 * PAGE);
		CHECK(!next_of(&TRACE, ring, head, &tail, &record));
		CHECK(tail == head);
	}
}

static void a_record_that_cannot_be_ends_the_ring(void)
{
	struct call first = call_of(1, HVA, PAGE, 4, 0), broken = first;
	const uint16_t sizes[] = {0, 7, 4000, UINT16_MAX};
	struct uffdb_traced record;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		uint64_t tail = 0, head;
		char ring[RING];

		broken.header.size = sizes[i];
		head = put(ring, 0, &first, sizeof(first));
		head = put(ring, head, &broken, sizeof(broken));
		CHECK(next_of(&TRACE, ring, head, &tail, &record));
		CHECK(!next_of(&TRACE, ring, head, &tail, &record) && tail == head);
	}
}

/* Found by fuzzing: a record without a type was a discard where madvise is not watched. */
static void what_is_not_watched_is_not_told(void)
{
	const struct uffdb_trace holes = {.config = {.enter_fallocate = 3, .nr_files = 1},
					  .files = &file_7};
	struct call nothing = call_of(0, HVA, PAGE, 4, 0);
	struct uffdb_traced record;
	uint64_t tail = 0, head;
	char ring[RING];

	head = put(ring, 0, &nothing, sizeof(nothing));
	CHECK(!next_of(&holes, ring, head, &tail, &record) && tail == head);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* What `make fuzz` does at length: records with some bytes of chance in them. */
static void no_bytes_lead_astray(void)
{
	uint64_t state = 20240229;
	uint8_t input[LONGEST];

	for (int i = 0; i < INPUTS; i++) {
		size_t size = 2;

		input[0] = (uint8_t)next_random(&state);
		input[1] = (uint8_t)next_random(&state);
		while (size + sizeof(struct call) < LONGEST && next_random(&state) % 4) {
			struct call call = call_of((uint16_t)(next_random(&state) % 5), HVA, PAGE,
						   next_random(&state) % 5, 4096);

			memcpy(input + size, &call, sizeof(call));
			size += sizeof(call);
		}
		for (uint64_t changes = next_random(&state) % 8; changes; changes--)
			input[next_random(&state) % size] = (uint8_t)next_random(&state);
		LLVMFuzzerTestOneInput(input, size - next_random(&state) % 3);
	}
}

int main(void)
{
	calls_are_told_wherever_they_lie();
	a_record_that_cannot_be_ends_the_ring();
	what_is_not_watched_is_not_told();
	no_bytes_lead_astray();
	return 0;
}
