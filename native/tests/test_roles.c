// SPDX-License-Identifier: GPL-2.0-or-later
/* Who touches: the guest, a device of it, or the host. */
#include <pthread.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../src/roles.h"
#include "check.h"
#include "uffdballoon.h"

static int told[2], ends[2];

static void *live_as(void *name)
{
	uint32_t tid = (uint32_t)syscall(SYS_gettid);
	char byte;

	CHECK(!prctl(PR_SET_NAME, name));
	CHECK(write(told[1], &tid, sizeof(tid)) == sizeof(tid));
	CHECK(!read(ends[0], &byte, 1));
	return NULL;
}

static uint32_t start(pthread_t *thread, const char *name)
{
	uint32_t tid;

	CHECK(!pthread_create(thread, NULL, live_as, (void *)(uintptr_t)name));
	CHECK(read(told[0], &tid, sizeof(tid)) == sizeof(tid));
	return tid;
}

int main(void)
{
	struct uffdb_roles roles;
	pthread_t threads[3];
	uint32_t vcpu, vhost, other;

	CHECK(!pipe(told) && !pipe(ends));
	uffdb_roles_init(&roles, getpid());
	vcpu = start(&threads[0], "qemu");
	vhost = start(&threads[1], "vhost-4711");
	other = start(&threads[2], "qemu");

	/* Where nobody knows the vCPUs every thread is one, but for a device's. */
	CHECK(uffdb_roles_of(&roles, other, true) == UFFDB_ROLE_VCPU);
	CHECK(uffdb_roles_of(&roles, vhost, true) == UFFDB_ROLE_DEVICE_WRITER);
	CHECK(uffdb_roles_of(&roles, vhost, false) == UFFDB_ROLE_HOST_READER);
	CHECK(uffdb_roles_of(&roles, 0, true) == UFFDB_ROLE_VCPU);

	CHECK(!uffdb_roles_set_vcpus(&roles, (int32_t[]){(int32_t)vcpu}, 1));
	CHECK(uffdb_roles_of(&roles, vcpu, true) == UFFDB_ROLE_VCPU);
	CHECK(uffdb_roles_of(&roles, other, false) == UFFDB_ROLE_HOST_READER);
	CHECK(uffdb_roles_of(&roles, vhost, true) == UFFDB_ROLE_DEVICE_WRITER);
	CHECK(uffdb_roles_of(&roles, 2, true) == UFFDB_ROLE_VCPU); /* kthreadd: a worker of KVM's */

	close(ends[1]);
	for (size_t i = 0; i < 3; i++)
		CHECK(!pthread_join(threads[i], NULL));
	uffdb_roles_release(&roles);
	return 0;
}
