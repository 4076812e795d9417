// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A fault is answered about ten times faster from the CPU that the faulting
 * thread just left: it sleeps, so the CPU is ours at once, and nothing has to
 * be woken across CPUs. The price is a look at where it ran, so that is done
 * when another thread faults, and else every now and then.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#define LOOK_EVERY	64
#define PROCESSOR_FIELD 39 /* proc(5), /proc/PID/stat */

void uffdb_placement_init(struct uffdb_placement *placement, int pid)
{
	*placement = (struct uffdb_placement){.pid = pid, .cpu = -1};
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

static int stat_fd_of(struct uffdb_placement *placement, uint32_t tid)
{
	char path[64];
	size_t slot;

	for (slot = 0; slot < UFFDB_PLACED_THREADS; slot++)
		if (placement->threads[slot].tid == tid && placement->threads[slot].stat_fd >= 0)
			return placement->threads[slot].stat_fd;
	slot = placement->next_slot++ % UFFDB_PLACED_THREADS;
	if (placement->threads[slot].stat_fd >= 0)
		close(placement->threads[slot].stat_fd);
	snprintf(path, sizeof(path), "/proc/%d/task/%u/stat", placement->pid, tid);
	placement->threads[slot].tid = tid;
	placement->threads[slot].stat_fd = open(path, O_RDONLY | O_CLOEXEC);
	return placement->threads[slot].stat_fd;
}

static int cpu_of(int stat_fd)
{
	char text[1024], *field;
	ssize_t size = pread(stat_fd, text, sizeof(text) - 1, 0);

	if (size <= 0)
		return -1;
	text[size] = 0;
	/* The second field is a name in parentheses that may hold anything. */
	field = strrchr(text, ')');
	for (int i = 2; field && i < PROCESSOR_FIELD; i++)
		field = strchr(field + 1, ' ');
	return field ? atoi(field + 1) : -1;
}

bool uffdb_placement_follow(struct uffdb_placement *placement, uint32_t tid)
{
	cpu_set_t set;
	int cpu;

	if (tid == placement->last_tid && ++placement->since_look < LOOK_EVERY)
		return false;
	placement->last_tid = tid;
	placement->since_look = 0;
	cpu = cpu_of(stat_fd_of(placement, tid));
	if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == placement->cpu)
		return false;
	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	/* A CPU that our cpuset does not have: stay where we are. */
	if (sched_setaffinity(0, sizeof(set), &set))
		return false;
	placement->cpu = cpu;
	return true;
}
