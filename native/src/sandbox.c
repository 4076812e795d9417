// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a manager may ask of the kernel while it enforces: a list of system calls, as a seccomp
 * filter that every thread is put under. A call that is not in it fails with EPERM: a manager
 * that died of a call nobody thought of would let the guest go.
 *
 * A rule allows a call when one argument, masked, has a certain value; several rules for one
 * call are alternatives. Whatever acts on a process is allowed on the target alone. seccomp sees
 * numbers, not what pointers point to: no path can be judged.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel_compat.h"
#include "uffdballoon.h"

#define RULES_MOST   192
#define PER_RULE     6 /* instructions, at most */
#define FRAME	     16
#define WRITING	     (O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | (O_TMPFILE & ~O_DIRECTORY))
#define IOCTL_TYPE   0xff00u
#define OF_TYPE(t)   ((uint32_t)(t) << 8)
#define WHOLE	     0xffffffffu
#define LOADS(where) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (where))

struct rule {
	uint32_t number;
	uint32_t argument;
	uint32_t mask; /* 0: whatever the arguments are */
	uint32_t value;
};

#define ANY(name)			  {SYS_##name, 0, 0, 0}
#define WHEN(name, argument, mask, value) {SYS_##name, argument, mask, value}

/* clang-format off */
static const struct rule RULES[] = {
	/* The fault loop, most frequent first. */
	ANY(read), WHEN(ioctl, 1, IOCTL_TYPE, OF_TYPE(0xAA)),	/* UFFDIO_ */
	ANY(write), ANY(pread64), ANY(futex), ANY(epoll_wait), ANY(clock_gettime),
	WHEN(ioctl, 1, IOCTL_TYPE, OF_TYPE('$')),		/* PERF_EVENT_IOC_ */
	WHEN(ioctl, 1, IOCTL_TYPE, OF_TYPE('f')),		/* PAGEMAP_SCAN */
	WHEN(ioctl, 1, WHOLE, TCGETS), WHEN(ioctl, 1, WHOLE, TIOCGWINSZ),
	WHEN(ioctl, 1, WHOLE, FIONBIO), WHEN(ioctl, 1, WHOLE, FIONREAD),
	WHEN(ioctl, 1, WHOLE, FIOCLEX), WHEN(ioctl, 1, WHOLE, FIONCLEX),
	WHEN(sched_setaffinity, 0, WHOLE, 0), ANY(sched_getaffinity), ANY(perf_event_open),
	ANY(timer_create), ANY(timer_settime), ANY(timer_delete),
	/* Files: to look at. What is written to is open already, and is cut when it is long. */
	WHEN(open, 1, WRITING, O_RDONLY), WHEN(openat, 2, WRITING, O_RDONLY),
	ANY(close), ANY(close_range), ANY(readv), ANY(writev), ANY(preadv), ANY(lseek),
	ANY(stat), ANY(fstat), ANY(lstat), ANY(newfstatat), ANY(statx), ANY(statfs),
	ANY(fstatfs), ANY(access), ANY(faccessat), ANY(faccessat2), ANY(readlink),
	ANY(readlinkat), ANY(getdents64), ANY(getcwd), ANY(fcntl), ANY(dup),
	ANY(pipe2), ANY(fallocate), ANY(ftruncate), ANY(pwrite64),
	ANY(unlink), ANY(unlinkat),				/* the control socket, at the end */
	/* Memory: nothing becomes code that was not in a file. */
	WHEN(mmap, 2, PROT_EXEC, 0), WHEN(mmap, 3, MAP_ANONYMOUS, 0),
	WHEN(mprotect, 2, PROT_EXEC, 0),
	ANY(munmap), ANY(mremap), ANY(madvise), ANY(brk), ANY(membarrier),
	/* Threads of its own, and no process. */
	WHEN(clone, 0, CLONE_THREAD, CLONE_THREAD), ANY(set_robust_list), ANY(rseq),
	ANY(set_tid_address), ANY(exit), ANY(exit_group), ANY(gettid), ANY(getpid),
	ANY(getppid), ANY(getuid), ANY(geteuid), ANY(getgid), ANY(getegid), ANY(getgroups),
	ANY(capget), ANY(sched_yield), ANY(sched_getparam), ANY(sched_getscheduler),
	ANY(getcpu), ANY(getrusage), ANY(times), ANY(getrlimit), WHEN(prlimit64, 2, WHOLE, 0),
	ANY(sysinfo), ANY(uname), ANY(getrandom),
	WHEN(prctl, 0, WHOLE, PR_SET_NAME), WHEN(prctl, 0, WHOLE, PR_GET_NAME),
	WHEN(prctl, 0, WHOLE, PR_SET_VMA),
	/* Signals and waiting. */
	ANY(rt_sigaction), ANY(rt_sigprocmask), ANY(rt_sigreturn), ANY(rt_sigpending),
	ANY(rt_sigtimedwait), ANY(sigaltstack), ANY(restart_syscall), ANY(nanosleep),
	ANY(clock_nanosleep), ANY(clock_getres), ANY(gettimeofday), ANY(time), ANY(poll),
	ANY(ppoll), ANY(select), ANY(pselect6), ANY(epoll_create1), ANY(epoll_ctl),
	ANY(epoll_pwait), ANY(eventfd2), ANY(timerfd_create), ANY(timerfd_settime),
	ANY(timerfd_gettime), ANY(inotify_add_watch), ANY(inotify_rm_watch),
	/* The control socket, and a monitor that is connected. */
	WHEN(socketpair, 0, WHOLE, AF_UNIX),
	ANY(accept), ANY(accept4), ANY(sendto), ANY(recvfrom), ANY(sendmsg), ANY(recvmsg),
	ANY(getsockopt), ANY(setsockopt), ANY(getsockname), ANY(getpeername), ANY(shutdown),
	ANY(wait4), ANY(waitid),				/* for the target as its tracer */
};
/* clang-format on */

struct program {
	struct sock_filter code[RULES_MOST * PER_RULE + FRAME];
	unsigned short length;
};

static void add(struct program *program, struct sock_filter instruction)
{
	program->code[program->length++] = instruction;
}

static void add_return(struct program *program, uint32_t action)
{
	add(program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action));
}

/* The number is in the accumulator, before and after. */
static void add_rule(struct program *program, const struct rule *rule)
{
	/* Its lower half: all arguments that are looked at are ints, or flags in an int. */
	uint32_t low = (uint32_t)offsetof(struct seccomp_data, args) + 8 * rule->argument;

	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rule->number, 0,
						  rule->mask ? 5 : 1));
	if (rule->mask) {
		add(program, (struct sock_filter)LOADS(low));
		add(program, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, rule->mask));
		add(program,
		    (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rule->value, 0, 1));
	}
	add_return(program, SECCOMP_RET_ALLOW);
	if (rule->mask)
		add(program, (struct sock_filter)LOADS(offsetof(struct seccomp_data, nr)));
}

static void add_deadly_unless(struct program *program, uint32_t where, uint32_t value)
{
	add(program, (struct sock_filter)LOADS(where));
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 1, 0));
	add_return(program, SECCOMP_RET_KILL_PROCESS);
}

static void build(struct program *program, const struct uffdb_sandbox *sandbox)
{
	const uint32_t pid = (uint32_t)sandbox->target_pid, pidfd = (uint32_t)sandbox->target_pidfd;
	const uint32_t tid = sandbox->target_tid ? (uint32_t)sandbox->target_tid : pid;
	const struct rule on_target[] = {
		WHEN(ptrace, 1, WHOLE, pid),
		WHEN(ptrace, 1, WHOLE, tid),
		WHEN(process_vm_readv, 0, WHOLE, pid),
		WHEN(process_vm_writev, 0, WHOLE, pid),
		WHEN(process_madvise, 0, WHOLE, pidfd),
		WHEN(pidfd_getfd, 0, WHOLE, pidfd),
		WHEN(pidfd_send_signal, 0, WHOLE, pidfd),
		WHEN(pidfd_open, 0, WHOLE, pid),
		WHEN(tgkill, 0, WHOLE, (uint32_t)getpid()),
	};

	const struct rule to_connect[] = {
		WHEN(socket, 0, WHOLE, AF_UNIX),
		ANY(connect),
	};

	_Static_assert(sizeof(RULES) / sizeof(*RULES) + sizeof(on_target) / sizeof(*on_target) +
				       sizeof(to_connect) / sizeof(*to_connect) <=
			       RULES_MOST,
		       "more rules than there is room for");
	program->length = 0;
	add_deadly_unless(program, offsetof(struct seccomp_data, arch), AUDIT_ARCH_X86_64);
	add(program, (struct sock_filter)LOADS(offsetof(struct seccomp_data, nr)));
	for (size_t i = 0; i < sizeof(RULES) / sizeof(*RULES); i++)
		add_rule(program, &RULES[i]);
	for (size_t i = 0; i < sizeof(on_target) / sizeof(*on_target); i++)
		add_rule(program, &on_target[i]);
	for (size_t i = 0; sandbox->may_connect && i < sizeof(to_connect) / sizeof(*to_connect);
	     i++)
		add_rule(program, &to_connect[i]);
	/* Its flags are in memory. libc does with clone(2) what it was refused here. */
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1));
	add_return(program, SECCOMP_RET_ERRNO | ENOSYS);
	add_return(program, SECCOMP_RET_ERRNO | EPERM);
}

int uffdb_sandbox_enter(const struct uffdb_sandbox *sandbox)
{
	const unsigned int flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
	struct program program;
	struct sock_fprog installed = {.filter = program.code};

	build(&program, sandbox);
	installed.len = program.length;
	/* With TSYNC it is passed on to the other threads (kernel/seccomp.c,
	 * seccomp_sync_threads()). */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &installed) ? -errno : 0;
}
