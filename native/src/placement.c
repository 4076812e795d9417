// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A fault is answered about ten times faster from the CPU that the faulting
 * thread just left: it sleeps, so the CPU is ours at once, and nothing has to
 * be woken across CPUs. The price is a look at where it ran, and a move when it
 * runs elsewhere.
 *
 * Whether that pays is measured: the time from our answer to the same thread's
 * next fault holds its waking, its own progress and our waking. The way that is
 * not in use is tried now and then, for a few faults, less often each time that
 * it turns out to be no better.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "placement.h"
#include "procstat.h"
#include "uffdballoon.h"

#define LOOK_EVERY	256
#define STREAK		4	/* a single fault from elsewhere is no reason to move */
#define STORM_NS	1000000 /* a thread that faults again this late did something else */
#define TRIAL		32	/* faults; few enough not to be seen in a 99th percentile */
#define PATIENCE_FIRST	1024	/* faults before the first trial */
#define PATIENCE_MOST	(1 << 20)
#define PROCESSOR_FIELD 39 /* proc(5), /proc/PID/stat */

void uffdb_placement_init(struct uffdb_placement *placement, int pid)
{
	*placement = (struct uffdb_placement){
		.pid = pid,
		.cpu = -1,
		.following = true,
		.prefers = true,
		.patience = PATIENCE_FIRST,
	};
	for (size_t i = 0; i < UFFDB_PLACED_THREADS; i++)
		placement->threads[i].stat_fd = -1;
}

void uffdb_placement_release(struct uffdb_placement *placement)
{
	for (size_t i = 0; i < UFFDB_PLACED_THREADS; i++)
		if (placement->threads[i].stat_fd >= 0)
			close(placement->threads[i].stat_fd);
	uffdb_placement_init(placement, placement->pid);
}

static struct uffdb_placed_thread *slot_of(struct uffdb_placement *placement, uint32_t tid)
{
	struct uffdb_placed_thread *thread;
	char path[64];

	for (size_t slot = 0; slot < UFFDB_PLACED_THREADS; slot++)
		if (placement->threads[slot].tid == tid)
			return &placement->threads[slot];
	thread = &placement->threads[placement->next_slot++ % UFFDB_PLACED_THREADS];
	if (thread->stat_fd >= 0)
		close(thread->stat_fd);
	snprintf(path, sizeof(path), "/proc/%d/task/%u/stat", placement->pid, tid);
	*thread = (struct uffdb_placed_thread){
		.tid = tid,
		.stat_fd = open(path, O_RDONLY | O_CLOEXEC),
		.cpu = -1,
		.since_look = LOOK_EVERY,
	};
	return thread;
}

static int cpu_of(int stat_fd)
{
	const char *field;
	char text[1024];
	ssize_t size = pread(stat_fd, text, sizeof(text) - 1, 0);

	if (size <= 0)
		return -1;
	text[size] = 0;
	field = uffdb_stat_field(text, PROCESSOR_FIELD);
	return field ? atoi(field) : -1;
}

static bool bind_to(struct uffdb_placement *placement, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (cpu < 0 || i == cpu) /* the kernel leaves out what our cpuset has not */
			CPU_SET((size_t)i, &set);
	/* A CPU that our cpuset does not have: stay where we are. */
	if (sched_setaffinity(0, sizeof(set), &set))
		return false;
	placement->cpu = cpu;
	placement->streak = 0;
	return true;
}

static bool switch_mode(struct uffdb_placement *placement, bool following)
{
	placement->following = following;
	placement->samples = 0;
	placement->cost_before_ns = placement->round_trip_ns;
	placement->round_trip_ns = 0;
	return !following && placement->cpu >= 0 && bind_to(placement, -1);
}

/*
 * After a trial: keep to the other way if it is twice as good. Less may be luck,
 * since a thread that may run anywhere may run in the right place for a while.
 */
static bool end_trial(struct uffdb_placement *placement)
{
	if (placement->round_trip_ns < placement->cost_before_ns / 2) {
		placement->prefers = placement->following;
		placement->patience = PATIENCE_FIRST;
		placement->samples = 0;
		return false;
	}
	if (placement->patience < PATIENCE_MOST)
		placement->patience *= 4;
	return switch_mode(placement, placement->prefers);
}

/* Learn what a round trip costs; true when the way was changed and we were moved with it. */
static bool update_cost(struct uffdb_placement *placement, struct uffdb_placed_thread *thread,
			uint64_t read_ns)
{
	uint64_t *cost = &placement->round_trip_ns;
	uint64_t round_trip = read_ns - thread->answered_ns;

	if (!thread->answered_ns || round_trip > STORM_NS)
		return false;
	if (*cost && round_trip > 4 * *cost)
		thread->since_look = LOOK_EVERY; /* it may run elsewhere by now */
	*cost = *cost ? *cost - *cost / 8 + round_trip / 8 : round_trip;
	if (++placement->samples < TRIAL)
		return false;
	if (placement->following != placement->prefers)
		return end_trial(placement);
	/* What was chosen turned out worse than what it was chosen over. */
	if (!placement->following && *cost > placement->cost_before_ns)
		placement->prefers = true;
	else if (placement->samples < placement->patience)
		return false;
	return switch_mode(placement, !placement->following);
}

bool uffdb_placement_follow(struct uffdb_placement *placement, uint32_t tid, uint64_t read_ns,
			    uint64_t answered_ns)
{
	struct uffdb_placed_thread *thread = slot_of(placement, tid);
	bool moved = update_cost(placement, thread, read_ns);

	thread->answered_ns = answered_ns;
	if (!placement->following)
		return moved;
	if (++thread->since_look >= LOOK_EVERY) {
		thread->cpu = cpu_of(thread->stat_fd);
		thread->since_look = 0;
	}
	if (thread->cpu < 0 || thread->cpu >= CPU_SETSIZE || thread->cpu == placement->cpu) {
		placement->streak = 0;
		return moved;
	}
	if (placement->cpu >= 0 && ++placement->streak < STREAK)
		return moved;
	return bind_to(placement, thread->cpu) || moved;
}
