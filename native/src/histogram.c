// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdatomic.h>

#include "histogram.h"
#include "uffdballoon.h"

#define STEP_BITS 4
_Static_assert(1 << STEP_BITS == UFFDB_HISTOGRAM_STEPS, "steps");

static unsigned int bucket_of(uint64_t value)
{
	unsigned int shift;

	if (value < UFFDB_HISTOGRAM_STEPS)
		return (unsigned int)value;
	shift = 63 - STEP_BITS - (unsigned int)__builtin_clzll(value);
	return (shift + 1) * UFFDB_HISTOGRAM_STEPS + (unsigned int)(value >> shift) -
	       UFFDB_HISTOGRAM_STEPS;
}

/* The largest value that falls in a bucket. */
static uint64_t top_of(unsigned int bucket)
{
	unsigned int shift = bucket / UFFDB_HISTOGRAM_STEPS;
	uint64_t step = bucket % UFFDB_HISTOGRAM_STEPS;

	if (!shift)
		return step;
	return ((step + UFFDB_HISTOGRAM_STEPS + 1) << (shift - 1)) - 1;
}

void uffdb_histogram_add(struct uffdb_histogram *histogram, uint64_t value)
{
	_Atomic uint64_t *count = &histogram->counts[bucket_of(value)];

	/* One writer: no need for a locked addition. */
	atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

uint64_t uffdb_histogram_quantile(const struct uffdb_histogram *histogram, uint32_t permille)
{
	uint64_t total = 0, rank, seen = 0;

	for (unsigned int i = 0; i < UFFDB_HISTOGRAM_BUCKETS; i++)
		total += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
	if (!total)
		return 0;
	rank = (total * (permille < 1000 ? permille : 1000) + 999) / 1000;
	for (unsigned int i = 0; i < UFFDB_HISTOGRAM_BUCKETS; i++) {
		seen += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
		if (seen && seen >= rank)
			return top_of(i);
	}
	return top_of(UFFDB_HISTOGRAM_BUCKETS - 1);
}

size_t uffdb_histogram_list(const struct uffdb_histogram *histogram, struct uffdb_bucket *out,
			    size_t nr)
{
	size_t found = 0;

	for (unsigned int i = 0; i < UFFDB_HISTOGRAM_BUCKETS && found < nr; i++) {
		uint64_t count = atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);

		if (count)
			out[found++] = (struct uffdb_bucket){top_of(i), count};
	}
	return found;
}
