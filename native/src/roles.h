/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who touches. */
#ifndef UFFDB_ROLES_H
#define UFFDB_ROLES_H

#include <stdatomic.h>

#include "uffdballoon.h"

#define UFFDB_KNOWN_ROLES 64

struct tid_set;
struct uffdb_roles {
	_Atomic(struct tid_set *) vcpus;
	int task_fd; /* /proc/PID/task */
	struct {
		uint32_t tid;
		uint8_t worker; /* for whom it acts, roles.c */
	} known[UFFDB_KNOWN_ROLES];
};

void uffdb_roles_init(struct uffdb_roles *roles, int pid);
void uffdb_roles_release(struct uffdb_roles *roles);
int uffdb_roles_set_vcpus(struct uffdb_roles *roles, const int32_t *tids, size_t nr);
uint8_t uffdb_roles_of(struct uffdb_roles *roles, uint32_t tid, bool write);

#endif
