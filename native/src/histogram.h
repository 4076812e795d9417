/* SPDX-License-Identifier: GPL-2.0-or-later */
/* 16 linear steps in each power of two. One writer, any reader. */
#ifndef UFFDB_HISTOGRAM_H
#define UFFDB_HISTOGRAM_H

#include <stdatomic.h>

#include "uffdballoon.h"

#define UFFDB_HISTOGRAM_STEPS	16
#define UFFDB_HISTOGRAM_BUCKETS (UFFDB_HISTOGRAM_STEPS * 61)

struct uffdb_histogram {
	_Atomic uint64_t counts[UFFDB_HISTOGRAM_BUCKETS];
};

void uffdb_histogram_add(struct uffdb_histogram *histogram, uint64_t value);
size_t uffdb_histogram_list(const struct uffdb_histogram *histogram, struct uffdb_bucket *out,
			    size_t nr);
uint64_t uffdb_histogram_quantile(const struct uffdb_histogram *histogram, uint32_t permille);

#endif
