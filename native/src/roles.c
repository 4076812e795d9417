// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Who touches: a vCPU thread is the guest. Another thread of the target reads
 * for the host, or writes for a device of the guest's. A thread that is not the
 * target's is a kernel worker that does KVM's asynchronous page faults, which are
 * the guest's (virt/kvm/async_pf.c), or another process that reads. A worker of
 * vhost's is a device: a thread of the kernel's, since Linux 6.4 one of the target's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "process.h"
#include "procstat.h"
#include "roles.h"
#include "uffdballoon.h"

#define FLAGS_FIELD 9 /* proc(5), /proc/PID/stat */
#define PF_KTHREAD  0x00200000ul

struct tid_set {
	struct tid_set *retired; /* the set that this one replaced */
	size_t nr;
	int32_t tids[];
};

void uffdb_roles_init(struct uffdb_roles *roles, int pid)
{
	char path[64];

	*roles = (struct uffdb_roles){.task_fd = -1};
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	roles->task_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

void uffdb_roles_release(struct uffdb_roles *roles)
{
	struct tid_set *set = atomic_load(&roles->vcpus);

	while (set) {
		struct tid_set *older = set->retired;

		free(set);
		set = older;
	}
	if (roles->task_fd >= 0)
		close(roles->task_fd);
}

int uffdb_roles_set_vcpus(struct uffdb_roles *roles, const int32_t *tids, size_t nr)
{
	struct tid_set *set = malloc(sizeof(*set) + nr * sizeof(*tids));

	if (!set)
		return -ENOMEM;
	set->nr = nr;
	if (nr) /* NULL is no source, of no bytes either */
		memcpy(set->tids, tids, nr * sizeof(*tids));
	/* The loop may be reading the old set: it is freed with the engine. */
	set->retired = atomic_load(&roles->vcpus);
	atomic_store_explicit(&roles->vcpus, set, memory_order_release);
	return 0;
}

enum worker {
	NO_WORKER,
	GUESTS_WORKER,
	DEVICES_WORKER
};

/* kernel/vhost_task.c and drivers/vhost/vhost.c: "vhost-" and the pid of who made it. */
static enum worker read_worker(struct uffdb_roles *roles, uint32_t tid)
{
	char path[64], text[512];
	const char *name, *field;

	snprintf(path, sizeof(path), "/proc/%u/stat", tid);
	if (!uffdb_read_text(AT_FDCWD, path, text, sizeof(text)))
		return NO_WORKER;
	name = strchr(text, '(');
	if (name && !strncmp(name, "(vhost-", strlen("(vhost-")))
		return DEVICES_WORKER;
	field = uffdb_stat_field(text, FLAGS_FIELD);
	if (!field || !(strtoul(field, NULL, 10) & PF_KTHREAD))
		return NO_WORKER;
	snprintf(path, sizeof(path), "%u", tid);
	return faccessat(roles->task_fd, path, F_OK, 0) ? GUESTS_WORKER : NO_WORKER;
}

/* For whom does a thread that is no vCPU act? Remembered: asking takes microseconds. */
static enum worker worker_of(struct uffdb_roles *roles, uint32_t tid)
{
	size_t slot = tid % UFFDB_KNOWN_ROLES;

	if (roles->known[slot].tid != tid) {
		roles->known[slot].tid = tid;
		roles->known[slot].worker = (uint8_t)read_worker(roles, tid);
	}
	return (enum worker)roles->known[slot].worker;
}

uint8_t uffdb_roles_of(struct uffdb_roles *roles, uint32_t tid, bool write)
{
	const struct tid_set *set = atomic_load_explicit(&roles->vcpus, memory_order_acquire);

	for (size_t i = 0; set && i < set->nr; i++)
		if ((uint32_t)set->tids[i] == tid)
			return UFFDB_ROLE_VCPU;
	switch (worker_of(roles, tid)) {
	case GUESTS_WORKER:
		return UFFDB_ROLE_VCPU;
	case DEVICES_WORKER:
		break;
	case NO_WORKER:
		if (!set || !set->nr) /* nobody knows the vCPUs */
			return UFFDB_ROLE_VCPU;
	}
	return write ? UFFDB_ROLE_DEVICE_WRITER : UFFDB_ROLE_HOST_READER;
}
