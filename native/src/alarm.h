/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Ends a blocking read of the thread that started it, at a time. */
#ifndef UFFDB_ALARM_H
#define UFFDB_ALARM_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct uffdb_alarm {
	timer_t timer;
	bool made;
};

/* Called by the thread that is to be woken. Return: 0 or -errno. */
int uffdb_alarm_start(struct uffdb_alarm *alarm);
void uffdb_alarm_stop(struct uffdb_alarm *alarm);

/* At @when_ns of CLOCK_MONOTONIC, and again until it is set anew; 0: never. */
void uffdb_alarm_set(struct uffdb_alarm *alarm, uint64_t when_ns);

#endif
