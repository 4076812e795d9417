// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A fault's message tells the thread's id as the faulting thread knows itself: in its own pid
 * namespace (fs/userfaultfd.c, userfault_msg(): task_pid_vnr(current); seen with Linux 6.18).
 * Everything else here, /proc and perf among it, speaks of ids as we see them. The last field of
 * NSpid in /proc/PID/task/TID/status is what joins the two.
 *
 * An id that no thread of the target has is an outsider's: a kernel worker, or another process
 * that reads. It is left as it is. In a namespace of its own a thread may have the id that an
 * outsider has here; the target's thread is taken to be meant.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "process.h"
#include "thread_ids.h"
#include "uffdballoon.h"

/* The ids of a thread, from our namespace to its own: as many as there are, first and last. */
static int read_ids(int task_fd, const char *name, uint32_t *first, uint32_t *last)
{
	char path[64], text[UFFDB_STATUS_BYTES], *field;
	int levels = 0;

	snprintf(path, sizeof(path), "%s/status", name);
	if (!uffdb_read_text(task_fd, path, text, sizeof(text)))
		return 0;
	field = strstr(text, "\nNSpid:");
	if (!field)
		return 0;
	field += strlen("\nNSpid:");
	while (*field == '\t') {
		*last = (uint32_t)strtoul(field + 1, &field, 10);
		if (!levels++)
			*first = *last;
	}
	return levels;
}

void uffdb_thread_ids_init(struct uffdb_thread_ids *ids, int pid)
{
	char path[64], name[16];
	uint32_t here, own;

	*ids = (struct uffdb_thread_ids){.task_fd = -1};
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	ids->task_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	snprintf(name, sizeof(name), "%d", pid);
	ids->foreign = read_ids(ids->task_fd, name, &here, &own) > 1;
}

void uffdb_thread_ids_release(struct uffdb_thread_ids *ids)
{
	if (ids->task_fd >= 0)
		close(ids->task_fd);
	ids->task_fd = -1;
}

void uffdb_thread_ids_forget(struct uffdb_thread_ids *ids)
{
	atomic_store(&ids->stale, true);
}

static uint32_t look_up(const struct uffdb_thread_ids *ids, uint32_t own)
{
	/* An fd of its own: the position in a directory belongs to the opened file. */
	int fd = openat(ids->task_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *tasks = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	uint32_t found = own, first, last;

	if (!tasks) {
		if (fd >= 0)
			close(fd);
		return own;
	}
	while ((entry = readdir(tasks))) {
		if (read_ids(ids->task_fd, entry->d_name, &first, &last) && last == own) {
			found = first;
			break;
		}
	}
	closedir(tasks);
	return found;
}

uint32_t uffdb_thread_here(struct uffdb_thread_ids *ids, uint32_t own)
{
	size_t slot = own % UFFDB_KNOWN_THREADS;

	if (!ids->foreign)
		return own;
	if (atomic_exchange(&ids->stale, false))
		memset(ids->known, 0, sizeof(ids->known));
	if (ids->known[slot].own != own) {
		ids->known[slot].own = own;
		ids->known[slot].here = look_up(ids, own);
	}
	return ids->known[slot].here;
}
