/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Time, in ns. */
#ifndef UFFDB_CLOCK_H
#define UFFDB_CLOCK_H

#include <stdint.h>
#include <time.h>

#define UFFDB_NS_PER_S	1000000000ull
#define UFFDB_NS_PER_MS 1000000ull

static inline uint64_t uffdb_now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * UFFDB_NS_PER_S + (uint64_t)now.tv_nsec;
}

static inline struct timespec uffdb_timespec(uint64_t ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / UFFDB_NS_PER_S),
				 .tv_nsec = (long)(ns % UFFDB_NS_PER_S)};
}

#endif
