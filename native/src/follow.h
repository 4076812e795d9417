/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The controlling side of observing. */
#ifndef UFFDB_FOLLOW_H
#define UFFDB_FOLLOW_H

#include "engine.h"

/* Call @each for what @find finds in the ballooned stretches of a range. */
typedef void uffdb_each_range(struct uffdb_engine *engine, const struct uffdb_range *range,
			      void *argument);
typedef int uffdb_find_ranges(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out,
			      size_t nr, uint64_t *next);
int uffdb_in_ballooned(struct uffdb_engine *engine, const struct uffdb_range *in,
		       uffdb_find_ranges *find, uffdb_each_range *each, void *argument);

/* With @control held, as uffdb_engine_follow(). */
int uffdb_follow(struct uffdb_engine *engine);

#endif
