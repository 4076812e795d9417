// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <unistd.h>

#include "alarm.h"
#include "clock.h"
#include "signals.h"
#include "uffdballoon.h"

#define AGAIN_NS 1000000 /* the signal may come just before the read() that it shall end */
#define TRIES	 64

int uffdb_alarm_start(struct uffdb_alarm *alarm)
{
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = UFFDB_WAKE_SIGNAL};

	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &alarm->timer))
		return -errno; /* without it, what is held would be held for ever */
	alarm->made = true;
	return 0;
}

void uffdb_alarm_stop(struct uffdb_alarm *alarm)
{
	if (alarm->made)
		timer_delete(alarm->timer);
	alarm->made = false;
}

void uffdb_alarm_set(struct uffdb_alarm *alarm, uint64_t when_ns)
{
	const struct itimerspec when = {
		.it_value = uffdb_timespec(when_ns), /* of 0: disarmed */
		.it_interval.tv_nsec = when_ns ? AGAIN_NS : 0,
	};

	for (int i = 0; alarm->made && i < TRIES; i++)
		if (!timer_settime(alarm->timer, TIMER_ABSTIME, &when, NULL))
			break;
}
