/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * uffdballoon: trap and judge touches of ballooned guest memory.
 *
 * Every function that can fail returns 0 or a count, or -errno. Addresses and
 * lengths are bytes; ranges are half-open. Nothing here prints or exits.
 */
#ifndef UFFDBALLOON_H
#define UFFDBALLOON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* What is declared here is what the shared library exports. */
#pragma GCC visibility push(default)

/**
 * uffdb_version - the version of this library, as "1.2.3".
 *
 * Return: a string that lives as long as the process.
 */
const char *uffdb_version(void);

/**
 * uffdb_soname - the binary interface of this library, as "libuffdballoon.so.1".
 *
 * Return: a string that lives as long as the process. A program that was linked with a library of
 * this name runs with every other one of this name.
 */
const char *uffdb_soname(void);

/* ---- userfaultfd: one ioctl a function (Documentation/admin-guide/mm/userfaultfd.rst) ---- */

#define UFFDB_MODE_MISSING 1u
#define UFFDB_MODE_WP	   2u
#define UFFDB_MODE_MINOR   4u

#define UFFDB_DONTWAKE	   1u /* leave the waiter asleep: uffdb_uffd_wake() follows */
#define UFFDB_WRITEPROTECT 2u /* map it write-protected */

/**
 * uffdb_uffd_open - make a userfaultfd of this process.
 * @dev_fd: open /dev/userfaultfd, or -1 for userfaultfd(2)
 *
 * Return: the fd (blocking, close-on-exec) or -errno.
 */
int uffdb_uffd_open(int dev_fd);

/**
 * uffdb_uffd_api - enable features; once for each userfaultfd.
 * @features: UFFD_FEATURE_* bits; bits that the kernel lacks give -EINVAL
 * @known:    out: all feature bits that this kernel knows
 */
int uffdb_uffd_api(int uffd, uint64_t features, uint64_t *known);

/**
 * uffdb_uffd_register - trap faults of a range; modes add to those it has.
 * @modes: UFFDB_MODE_*
 *
 * Return: 0; -EBUSY when another userfaultfd has it; -ENOMEM when the target has no
 *         room for the VMAs (vm.max_map_count); -ESRCH when the target is gone.
 */
int uffdb_uffd_register(int uffd, uint64_t hva, uint64_t len, uint32_t modes);

/**
 * uffdb_uffd_unregister - trap no more; wakes every waiter and lifts write protection.
 *
 * Return: 0; -ENOMEM and -ESRCH as uffdb_uffd_register().
 */
int uffdb_uffd_unregister(int uffd, uint64_t hva, uint64_t len);

/**
 * uffdb_uffd_zeropage - fill absent pages with zeros.
 * @flags: 0 or UFFDB_DONTWAKE
 *
 * Return: 0; -EEXIST when a page is there already; -EAGAIN while the mappings
 *         change (an event waits to be read); -ENOENT when it is not registered;
 *         -ESRCH when the target is gone.
 */
int uffdb_uffd_zeropage(int uffd, uint64_t hva, uint64_t len, uint32_t flags);

/**
 * uffdb_fill_zeros - fill absent pages with zeros, up to the first that is there.
 *
 * Return: bytes that were filled and whose waiters are awake; -errno when none.
 */
int64_t uffdb_fill_zeros(int uffd, uint64_t hva, uint64_t len);

/** uffdb_uffd_copy - fill absent pages from @src, our own memory. Return: as zeropage. */
int uffdb_uffd_copy(int uffd, uint64_t hva, const void *src, uint64_t len, uint32_t flags);

/** uffdb_uffd_continue - map a page cache page that is there (MINOR). Return: as zeropage. */
int uffdb_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint32_t flags);

/** uffdb_uffd_poison - make an absent page answer as broken hardware. Return: as zeropage. */
int uffdb_uffd_poison(int uffd, uint64_t hva, uint64_t len, uint32_t flags);

/**
 * uffdb_uffd_writeprotect - set or lift write protection.
 *
 * Lifting wakes the waiters; setting wakes nobody.
 */
int uffdb_uffd_writeprotect(int uffd, uint64_t hva, uint64_t len, bool on);

/** uffdb_uffd_wake - let waiters try again. */
int uffdb_uffd_wake(int uffd, uint64_t hva, uint64_t len);

/* ---- what we may do ourselves ---- */

/**
 * uffdb_keep_capabilities - drop all capabilities but these, in every thread, for good.
 * @keep: bits as in /proc/PID/status; one that is not held stays so
 *
 * Context: no other thread blocks the signal SIGRTMAX - 2, or makes processes meanwhile.
 * Return: 0; -ETIMEDOUT when a thread does not answer; -errno. Some have dropped by then.
 */
int uffdb_keep_capabilities(uint64_t keep);

/** uffdb_held_capabilities - tell what the calling thread is permitted: 0 or -errno. */
int uffdb_held_capabilities(uint64_t *held);

/**
 * struct uffdb_sandbox - whom a sandboxed process may act on.
 * @target_pid:	  for ptrace(2), process_vm_readv(2), process_vm_writev(2), pidfd_open(2)
 * @target_tid:	  a thread of it, for ptrace(2), too; 0: none but the main one
 * @target_pidfd: for pidfd_getfd(2), pidfd_send_signal(2), process_madvise(2)
 * @may_connect:  to Unix sockets: whoever runs as root could ask others to act for it
 */
struct uffdb_sandbox {
	int target_pid;
	int target_tid;
	int target_pidfd;
	bool may_connect;
};

/**
 * uffdb_sandbox_enter - leave this process what a manager needs, in every thread, for good.
 *
 * Sets no_new_privs and a seccomp filter. Afterwards no file can be opened for writing, no process
 * or program started, no memory made executable; such a call fails with EPERM.
 *
 * Return: 0; -ESRCH when a thread has another filter already; -errno.
 */
int uffdb_sandbox_enter(const struct uffdb_sandbox *sandbox);

/* ---- other processes ---- */

/** uffdb_pidfd_open - pin a process: an fd that is readable once it has ended, or -errno. */
int uffdb_pidfd_open(int pid);

/**
 * uffdb_process_read - read memory of another process.
 *
 * An absent page that a userfaultfd traps is a fault of the caller's: never
 * call it from the thread that answers faults.
 *
 * Return: bytes read, fewer where memory ends, or -errno.
 */
int64_t uffdb_process_read(int pid, uint64_t hva, void *into, size_t len);

/**
 * uffdb_process_write - write to writable memory of another process.
 *
 * Asks for the permission to trace, as /proc/PID/mem does, and not for that to
 * open a file of the other user's as well. Absent pages: as uffdb_process_read().
 *
 * Return: bytes written, fewer where memory ends, or -errno.
 */
int64_t uffdb_process_write(int pid, uint64_t hva, const void *from, size_t len);

/** uffdb_pidfd_getfd - duplicate an fd of another process: our fd, or -errno. */
int uffdb_pidfd_getfd(int pidfd, int remote_fd);

struct uffdb_range {
	uint64_t start;
	uint64_t len;
};

/**
 * uffdb_process_madvise - advise ranges of another process.
 *
 * Return: bytes advised, which may be fewer than asked for, or -errno.
 */
int64_t uffdb_process_madvise(int pidfd, const struct uffdb_range *ranges, size_t nr, int advice);

/** uffdb_punch_hole - free a part of a file; it stays as long as it was. */
int uffdb_punch_hole(int fd, uint64_t offset, uint64_t len);

/**
 * uffdb_file_system - tell the file system that an open file is on.
 * @fd:	        may be one of O_PATH
 * @type:       its magic number (statfs(2))
 * @page_bytes: its block size: on hugetlbfs that of the file's pages
 *
 * Return: 0 or -errno.
 */
int uffdb_file_system(int fd, uint64_t *type, uint64_t *page_bytes);

/**
 * uffdb_resident - list the stretches of a range that hold memory.
 * @pagemap_fd: open /proc/PID/pagemap
 * @out:	at most @nr stretches; present or swapped out, and not the zero page
 * @next:	out: where to go on; the end of the range when all of it was walked
 *
 * By PAGEMAP_SCAN, else by reading pagemap, which cannot tell the zero page
 * from a page of its own and lists it.
 *
 * Return: number of stretches or -errno.
 */
int uffdb_resident(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out, size_t nr,
		   uint64_t *next);

/**
 * uffdb_xsave_size - size of an XSAVE area in the standard format.
 * @features: the state components in it, as in XCR0
 *
 * Return: bytes, from CPUID leaf 0xd; 0 on a CPU without it.
 */
uint32_t uffdb_xsave_size(uint64_t features);

/* ---- ledger: which pages are in the balloon, one bit a 4 KiB page ---- */

#define UFFDB_BLOCK_SHARED  1u /* of a file: there is no zero page to share, if not private */
#define UFFDB_BLOCK_HUGETLB 2u /* pages of 2 MiB that are trapped and answered whole */
#define UFFDB_BLOCK_PRIVATE 4u /* with SHARED: mapped by MAP_PRIVATE all the same */

#define UFFDB_MAX_NODES 128 /* as QEMU has at most */

struct uffdb_block {
	uint64_t hva;
	uint64_t size;
	uint32_t flags;
	uint32_t node; /* of the guest; UFFDB_MAX_NODES and above: one without a floor */
};

struct uffdb_ledger;

/**
 * uffdb_ledger_create - make an empty ledger over RAM blocks.
 *
 * Memory is committed where a page was ballooned, not before. The blocks must
 * not overlap; they are sorted here.
 */
int uffdb_ledger_create(const struct uffdb_block *blocks, size_t nr, struct uffdb_ledger **out);
void uffdb_ledger_destroy(struct uffdb_ledger *ledger);

/* Where the file of a ledger has room for a note of the caller's; zeros at first. */
#define UFFDB_NOTE_OFFSET 4096
#define UFFDB_NOTE_BYTES  12288

/**
 * uffdb_ledger_create_in - make a ledger in a file, or go on with the one that is there.
 * @fd: of a memfd; an empty one is filled. The caller's, and may be closed
 *
 * Return: as uffdb_ledger_create(); -EINVAL when it is the ledger of other RAM blocks;
 *         -E2BIG with too many blocks.
 */
int uffdb_ledger_create_in(int fd, const struct uffdb_block *blocks, size_t nr,
			   struct uffdb_ledger **out);

/**
 * uffdb_ledger_set - call pages ballooned.
 *
 * Context: any thread, together with a running engine.
 * Return: number of pages that were not, or -ENOENT outside of the RAM blocks.
 */
int64_t uffdb_ledger_set(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

/** uffdb_ledger_clear - call pages owned. Return: number of pages that were ballooned. */
int64_t uffdb_ledger_clear(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

/** uffdb_ledger_test - 1 when the page at @hva is ballooned, 0 when not, -ENOENT. */
int uffdb_ledger_test(const struct uffdb_ledger *ledger, uint64_t hva);

/** uffdb_ledger_pages - number of ballooned pages. */
uint64_t uffdb_ledger_pages(const struct uffdb_ledger *ledger);

/** uffdb_ledger_node_pages - number of ballooned pages in the RAM blocks of a node. */
uint64_t uffdb_ledger_node_pages(const struct uffdb_ledger *ledger, uint32_t node);

/**
 * uffdb_ledger_next - find the first ballooned stretch in a range of one RAM block.
 *
 * Return: 1 with @out, 0 when there is none, -ENOENT.
 */
int uffdb_ledger_next(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t end,
		      struct uffdb_range *out);

/**
 * uffdb_ledger_count - number of ballooned pages in a range of one RAM block; 0 outside.
 *
 * Costs as much as there are 2 MiB blocks in the range; of a whole RAM block, nothing.
 *
 * Context: any thread.
 */
uint64_t uffdb_ledger_count(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

/* 2 MiB blocks of the host, by how many of their pages are ballooned. */
struct uffdb_tally {
	uint64_t broken; /* some */
	uint64_t whole;	 /* all */
	uint64_t untouched;
};

/**
 * uffdb_ledger_tally - tell the blocks that the RAM block around @hva has a part in.
 *
 * They are counted as they change: this walks nothing.
 *
 * Context: any thread.
 * Return: 0, or -ENOENT outside of the RAM blocks.
 */
int uffdb_ledger_tally(const struct uffdb_ledger *ledger, uint64_t hva, struct uffdb_tally *out);

/**
 * uffdb_ledger_fine - count the 2 MiB blocks of the host that are broken more finely than allowed.
 * @before: count those only that are the same there, over the same RAM blocks; or NULL
 * @of:	    a range of one RAM block
 * @order:  0 to 9: a block counts when an aligned stretch of 2^order pages of it is ballooned in
 * part
 *
 * Context: any thread.
 */
uint64_t uffdb_ledger_fine(const struct uffdb_ledger *ledger, const struct uffdb_ledger *before,
			   const struct uffdb_range *of, uint32_t order);

/** uffdb_ledger_copy - make a ledger over the same RAM blocks the same. */
void uffdb_ledger_copy(const struct uffdb_ledger *from, struct uffdb_ledger *to);

#define UFFDB_MAX_ORDER 10 /* the largest block of Linux's buddy allocator on x86-64 */

struct uffdb_fragments {
	uint64_t pages;
	uint64_t runs;	     /* maximal ones */
	uint64_t first_page; /* the span from the first page to behind the last */
	uint64_t end_page;
	uint64_t lengths[64]; /* runs of 2^i to 2^(i+1)-1 pages */
	uint64_t
		orders[UFFDB_MAX_ORDER + 1]; /* aligned blocks of 2^i pages that they are made of */
};

/**
 * uffdb_ledger_fragments - add up the runs of a range that lies in one RAM block.
 * @without:	count pages that are not in this one, too; or NULL
 * @first_page: the guest's number of the range's first page
 * @out:	what is there already is added to; zeros at first
 */
void uffdb_ledger_fragments(const struct uffdb_ledger *ledger, const struct uffdb_ledger *without,
			    const struct uffdb_range *of, uint64_t first_page,
			    struct uffdb_fragments *out);

/**
 * uffdb_ledger_list - list the runs of a range that lies in one RAM block.
 * @without: leave out pages that are in this one, too; or NULL
 * @out:     room for @nr runs, in order
 *
 * Return: runs that were listed. Where those are @nr there may be more, behind the last.
 */
size_t uffdb_ledger_list(const struct uffdb_ledger *ledger, const struct uffdb_ledger *without,
			 const struct uffdb_range *of, struct uffdb_range *out, size_t nr);

/* ---- contract: what a touch means ---- */

enum uffdb_role {
	UFFDB_ROLE_VCPU,	  /* the guest, or a kernel worker that faults for it */
	UFFDB_ROLE_HOST_READER,	  /* migration, dump, monitor: gets zeros */
	UFFDB_ROLE_DEVICE_WRITER, /* writes on behalf of the guest */
};

enum uffdb_verdict {
	UFFDB_ORDINARY,
	UFFDB_GRANTED,
	UFFDB_VIOLATION,
};

enum uffdb_contract_kind {
	UFFDB_CONTRACT_TOLD, /* a page leaves the balloon by being deflated, and by nothing else */
	UFFDB_CONTRACT_CAP,  /* touching is deflating, while @floor_bytes stay in the balloon */
};

/* What was agreed on. */
struct uffdb_terms {
	uint32_t kind;		 /* enum uffdb_contract_kind */
	uint32_t count_reported; /* under cap, not 0: what is reported free is in the balloon */
	uint64_t floor_bytes;
	uint64_t grace_ns;    /* boot grace after a reset; 0: not limited by time */
	uint64_t grace_bytes; /* 0: not limited by bytes; both 0: no grace */
	uint64_t node_floors[UFFDB_MAX_NODES]; /* as @floor_bytes, of each node */
};

/* What is left of a boot grace. */
struct uffdb_grace {
	uint32_t runs; /* a reset was, and no limit of the terms is reached */
	uint32_t reserved;
	uint64_t until_ns;   /* CLOCK_MONOTONIC; when the terms limit it by time */
	uint64_t left_bytes; /* when they limit it by bytes */
};

/* The terms, and how far they are used up. A new one has its terms, and is zeros otherwise. */
struct uffdb_contract {
	struct uffdb_terms terms;
	struct uffdb_grace grace;
};

struct uffdb_judged {
	uint64_t ballooned_bytes; /* in all, with those of the touched page */
	uint64_t touched_bytes;	  /* of the touched page that are in the balloon */
	uint64_t now_ns;	  /* CLOCK_MONOTONIC */
	uint32_t role;
	uint32_t node;
	uint64_t node_ballooned_bytes; /* as @ballooned_bytes, of the touched page's node */
};

/** uffdb_contract_reset - the guest was reset: its balloon is empty, the boot grace begins. */
void uffdb_contract_reset(struct uffdb_contract *contract, uint64_t now_ns);

/**
 * uffdb_contract_judge - tell what a touch means; the boot grace pays for what it grants.
 *
 * A host reader's touch of a ballooned page is ordinary, and is answered with zeros.
 *
 * Return: enum uffdb_verdict.
 */
uint32_t uffdb_contract_judge(struct uffdb_contract *contract, const struct uffdb_judged *touch);

/* ---- a file that others write to ---- */

/**
 * uffdb_bounded_file_open - open a file without a name that takes so much memory at most.
 * @name: what /proc shows of it
 * @size: bytes; the rest of what is written to it fails with ENOSPC
 *
 * It lies in a tmpfs of its own that is mounted nowhere, and ends with it.
 *
 * Return: fd, for reading and writing; -EPERM without CAP_SYS_ADMIN; -ENOSYS before Linux 5.2;
 *         -ENODEV on a kernel without tmpfs; -ENOMEM, -EMFILE, -ENFILE.
 */
int uffdb_bounded_file_open(const char *name, uint64_t size);

/* ---- trace: what the target's balloon device gives up and takes back, as others record it ---- */

/**
 * uffdb_tracefs_open - open the root of a tracefs.
 *
 * The one that is mounted, else one of our own that no other process sees.
 *
 * Return: directory fd; -EPERM, -EACCES; -ENODEV on a kernel without it.
 */
int uffdb_tracefs_open(void);

/* A part of a file of the target that is guest memory, as its fd number says it. */
struct uffdb_traced_file {
	int32_t fd;
	uint32_t reserved;
	uint64_t offset;
	uint64_t hva;
	uint64_t len;
};

enum uffdb_trace_by {
	UFFDB_TRACE_BY_ANY, /* BPF, or perf where that cannot be had */
	UFFDB_TRACE_BY_BPF,
	UFFDB_TRACE_BY_PERF,
	UFFDB_TRACE_BY_LOG, /* QEMU's own trace events; needs no privilege; never chosen by ANY */
};

/* A stretch of guest memory: where a line's guest address is in the target. */
struct uffdb_traced_ram {
	uint64_t gpa;
	uint64_t hva;
	uint64_t len;
};

struct uffdb_trace_config {
	int pid;
	/* Ids of tracepoints, of events/syscalls/sys_*_NAME/id; 0: not watched */
	int enter_madvise, enter_fallocate;
	uint32_t by;	     /* enum uffdb_trace_by */
	uint64_t ring_bytes; /* in all; rounded up to a power of two, by perf for each CPU */
	const struct uffdb_traced_file *files;
	size_t nr_files;
	/*
	 * By a log alone. The file is one that QEMU writes its log to and nobody else reads: holes
	 * are punched into what was read. It must be one that holes can be punched into, open for
	 * reading and writing; the fd stays the caller's. @actual_pages: what the balloon device
	 * counts as given up, in pages of 4 KiB, when QEMU begins to log; what was given up before
	 * is not told of.
	 */
	int log_fd;
	const struct uffdb_traced_ram *ram;
	size_t nr_ram;
	uint64_t actual_pages;
};

struct uffdb_trace;

/**
 * uffdb_trace_create - watch all threads of a process, and those to come.
 *
 * By perf it takes an event for each thread and CPU, and raises our limit of open
 * files to what is allowed.
 *
 * Return: 0; -EACCES, -EPERM without CAP_PERFMON (by BPF: and CAP_BPF); -EMFILE;
 *         -ESRCH; -E2BIG when others use up the tracepoint; -EOPNOTSUPP by BPF
 *         outside of the initial pid namespace. By a log: -EBADF; -EACCES for a
 *         file that is not open for both; -EOPNOTSUPP for one without holes.
 */
int uffdb_trace_create(const struct uffdb_trace_config *config, struct uffdb_trace **out);
void uffdb_trace_destroy(struct uffdb_trace *trace);

#define UFFDB_TRACE_FDS 4

/**
 * uffdb_trace_fds - list the fds with which another process goes on with a trace.
 * @out: room for UFFDB_TRACE_FDS; they stay the trace's
 *
 * As long as anybody holds them, what the target does is recorded.
 *
 * Return: how many; 0 for a trace by perf or by a log, which ends with its process.
 */
size_t uffdb_trace_fds(const struct uffdb_trace *trace, int *out);

/**
 * uffdb_trace_go_on - a trace of what was recorded, and not read, since another process read it.
 * @fds: UFFDB_TRACE_FDS of them; the trace's from now on, unless it fails
 *
 * Return: 0; -EINVAL when that is the trace of another process, or no trace; -ENOMEM.
 */
int uffdb_trace_go_on(const struct uffdb_trace_config *config, const int *fds,
		      struct uffdb_trace **out);

/**
 * uffdb_trace_source - "bpf", "perf" or "log".
 * @bpf_error: why it is not BPF, -errno; 0 when it is, or nobody asked for it
 */
const char *uffdb_trace_source(const struct uffdb_trace *trace, int *bpf_error);

/** uffdb_trace_fd - readable after the first record since uffdb_trace_quiet(), or many. */
int uffdb_trace_fd(const struct uffdb_trace *trace);

/** uffdb_trace_hush - tell of no further record: it is looked at every now and then. */
void uffdb_trace_hush(struct uffdb_trace *trace);

/**
 * uffdb_trace_quiet - ask to be told of the next record; drain once more after it.
 *
 * Context: the controlling thread.
 * Return: 0 or -errno.
 */
int uffdb_trace_quiet(struct uffdb_trace *trace);

/* ---- engine: the fault loop, its windows and its events ---- */

enum uffdb_rung_kind {
	UFFDB_RUNG_OBSERVE = 1, /* grant */
	UFFDB_RUNG_ZERO_READ,	/* zeros for a read; a write goes to the next rung */
	UFFDB_RUNG_THROTTLE,	/* grant at a rate; above it the next rung, or wait as the last */
	UFFDB_RUNG_FREEZE,	/* hold until released, or for @hold_ns and then the next rung */
	UFFDB_RUNG_PAUSE,	/* hold until uffdb_engine_resolve(): the VM is to be stopped */
	UFFDB_RUNG_POISON,	/* UFFDIO_POISON; a page that is there is to be zapped first */
	UFFDB_RUNG_KILL,
};

struct uffdb_rung {
	uint32_t kind;
	uint32_t reserved;
	uint64_t hold_ns; /* freeze; 0: until released */
	uint64_t bytes_per_s;
	uint64_t burst_bytes;
};

enum uffdb_action {
	UFFDB_ACTION_NONE,
	UFFDB_ACTION_GRANT,
	UFFDB_ACTION_ZERO_READ,
	UFFDB_ACTION_THROTTLE,
	UFFDB_ACTION_FREEZE,
	UFFDB_ACTION_PAUSE,
	UFFDB_ACTION_POISON,
	UFFDB_ACTION_KILL,
	UFFDB_ACTION_RELEASE,	/* what was held is granted */
	UFFDB_ACTION_NO_MEMORY, /* the host has no page for it: held until there is one */
};
#define UFFDB_ACTIONS	10
#define UFFDB_MAX_RUNGS 8
#define UFFDB_ERRNOS	134 /* EHWPOISON is the last that Linux has on x86-64 */

/* How the guest's own balloon is followed. */
enum uffdb_observing {
	UFFDB_OBSERVE_NONE,
	UFFDB_OBSERVE_TRACE,  /* every fault is judged after all that was traced before it */
	UFFDB_OBSERVE_EVENTS, /* UFFD_EVENT_REMOVE, which needs its feature; no deflates are told */
	UFFDB_OBSERVE_SCAN,   /* by what is gone since the last uffdb_engine_scan() */
};

/* A part of a file that is shared guest memory, opened by us for reading and writing. */
struct uffdb_memory_file {
	int32_t fd;
	uint32_t reserved;
	uint64_t offset;
	uint64_t hva;
	uint64_t len;
};

struct uffdb_engine_config {
	int uffd;
	int pidfd;	/* of the target */
	int pagemap_fd; /* /proc/PID/pagemap, or -1 */
	int mem_fd;	/* /proc/PID/mem, or -1 */
	int pid;
	bool write_protect;	   /* UFFD_FEATURE_PAGEFAULT_FLAG_WP was granted */
	bool write_protect_shared; /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM was granted */
	bool minor_shmem;	   /* UFFD_FEATURE_MINOR_SHMEM was */
	bool minor_hugetlbfs;	   /* UFFD_FEATURE_MINOR_HUGETLBFS was */
	bool follow_cpu;	   /* run where the faulting threads run, as long as it pays */
	uint32_t ring_records;	   /* a power of two */
	uint32_t nr_rungs;
	uint64_t around_bytes;	/* fill so much around a touch of owned memory; a power of two */
	uint64_t window_budget; /* at most so many windows; 0: no limit but the kernel's */
	/*
	 * At most about so many mappings of huge pages are ever made by windows, which stay for
	 * good; 0: no limit. Windows there are the larger, and the same at every attach.
	 */
	uint64_t huge_mappings;
	uint32_t observing;	   /* enum uffdb_observing */
	struct uffdb_trace *trace; /* for UFFDB_OBSERVE_TRACE; must outlive the engine */
	bool follow;		   /* on a thread of our own, from start to stop */
	/*
	 * Under UFFDB_CONTRACT_CAP, trap no more than the floor needs: see uffdb_engine_look().
	 * Of private anonymous memory alone, without node floors, with UFFDB_OBSERVE_NONE or
	 * UFFDB_OBSERVE_TRACE, on a kernel with PAGEMAP_SCAN, with a ledger that is in no file;
	 * else everything is trapped always.
	 */
	bool slackens;
	bool tell_begin; /* news are also that the balloon begins to move */
	/*
	 * Zeros for a reader cost memory there, and are dropped again by holes: within a second
	 * after it went on. Copied; the fds must outlive the engine. Needs @pagemap_fd.
	 */
	const struct uffdb_memory_file *memory_files;
	size_t nr_memory_files;
	uint64_t memory_patience_ns; /* kill it when a touch waited so long for memory; 0: never */
	/*
	 * So late the monitor may tell of a reset, where another stands between; 0: before any
	 * touch. A violation waits so long, since it was read, where the ladder has a rung that
	 * harms.
	 */
	uint64_t reset_delay_ns;
	struct uffdb_terms terms;
	struct uffdb_rung rungs[UFFDB_MAX_RUNGS]; /* the gentlest first */
};

/* One touch that was not ordinary, or one that was held and goes on. */
struct uffdb_event {
	uint64_t seq;	    /* counts on over dropped records */
	uint64_t time_ns;   /* CLOCK_REALTIME */
	uint64_t hva;	    /* of the page */
	uint64_t size;	    /* bytes that were answered for */
	uint64_t answer_ns; /* from reading the fault to this record, right before its answer */
	uint32_t tid;
	uint8_t write;
	uint8_t verdict;
	uint8_t action;
	uint8_t role;
	uint8_t reserved[16];
};

struct uffdb_stats {
	uint64_t ordinary;
	uint64_t granted;
	uint64_t violations;
	uint64_t host_reads;		 /* by other threads than vCPUs: zeros, no violation */
	uint64_t actions[UFFDB_ACTIONS]; /* what was done, by enum uffdb_action */
	uint64_t filled_outside; /* touches of ballooned pages that another process had filled */
	uint64_t slipped_writes; /* came between zero page and write protection; found and judged */
	uint64_t exists;	 /* another answer was first */
	uint64_t retried;	 /* the mappings were changing */
	uint64_t gone;		 /* page or target had gone */
	uint64_t failed;	 /* answers that the kernel refused; the thread was let try again */
	uint64_t failed_errno[UFFDB_ERRNOS]; /* the same by errno; [0]: by a larger one */
	uint64_t together;     /* ordinary touches that another's answer had answered, too */
	uint64_t around_pages; /* filled beside those that were touched */
	uint64_t events_posted;
	uint64_t events_dropped;
	uint64_t parked;	    /* held right now */
	uint64_t moves;		    /* of the fault thread to another CPU */
	uint64_t observed_inflated; /* pages, by the guest's own balloon */
	uint64_t observed_deflated;
	uint64_t reported_bytes; /* by free page reporting, ever */
	uint64_t reported_pages; /* that are in the ledger for that, now */
	uint64_t regained_bytes; /* of what was reported: granted again as whole blocks of 2 MiB */
	uint64_t refused_discards; /* the kernel failed them: nothing was given up */
	uint64_t lost_records;	   /* of the trace, as far as they were counted */
	uint64_t resyncs;	   /* losses after which no page of before is held to `told` */
	uint64_t doubtful;	   /* touches granted for that */
	uint64_t given_twice;	   /* pages that were in the balloon already; by a log alone */
	uint64_t pieces;	   /* of huge pages that are not whole in the balloon, now */
	uint64_t late;		   /* pages that were written in the gap before their window */
	uint64_t late_reads;	   /* that were read in it: zeros; protected from then on */
	uint64_t zapped_again; /* pages of zeros: filled in it beside a touched one, or lent to a
				  reader */
	uint64_t arm_ns_max;   /* from an inflate to its window */
	uint64_t windows;
	uint64_t armed_bytes;
	uint64_t unarmed_bytes;	     /* of windows that trap nothing, for now; not in armed_bytes */
	uint64_t taken_unseen_bytes; /* of these: taken back, without a touch that was trapped */
	uint64_t slackens;	     /* 1: there may be such windows */
	uint64_t moving;	     /* 1: the balloon did a moment ago, and may go on to */
	uint64_t follow_errno;	     /* of following, at last: ENOMEM without room for a window */
};

struct uffdb_engine;

/**
 * uffdb_engine_create - make an engine; it reads nothing until it is started.
 *
 * The fds of @config and @ledger stay the caller's and must outlive it.
 */
int uffdb_engine_create(const struct uffdb_engine_config *config, struct uffdb_ledger *ledger,
			struct uffdb_engine **out);

/** uffdb_engine_destroy - stop and free. Armed windows stay registered: close the userfaultfd. */
void uffdb_engine_destroy(struct uffdb_engine *engine);

/**
 * uffdb_engine_scan - for UFFDB_OBSERVE_SCAN: compare with the last picture.
 *
 * The first picture is that of uffdb_engine_create().
 *
 * Return: pages that were given up since, or -errno.
 */
int64_t uffdb_engine_scan(struct uffdb_engine *engine);

/**
 * uffdb_engine_news_fd - with @follow: an eventfd, readable when the balloon moved and is quiet.
 *
 * And at once when @follow_errno of the statistics has changed, or there is something
 * for uffdb_engine_hold_zeros().
 */
int uffdb_engine_news_fd(const struct uffdb_engine *engine);

/**
 * uffdb_engine_hold_zeros - list ballooned pages that hold zeros, to be zapped again.
 *
 * They were filled beside a page that was touched, or by khugepaged, before their
 * window was there; or a reader of private huge pages got them. Unless it returns 0, no fault is
 * answered and nothing else may be asked of the engine until uffdb_engine_go_on(): zap at once,
 * then call that.
 *
 * Return: entries of @out, which has room for @nr; 0 when there is nothing (left).
 */
size_t uffdb_engine_hold_zeros(struct uffdb_engine *engine, struct uffdb_range *out, size_t nr);
void uffdb_engine_go_on(struct uffdb_engine *engine);

#define UFFDB_ORDERS 32

/**
 * uffdb_engine_arrivals - how the guest's pages came, one neighbour after the other.
 *
 * Return: entries of @out: runs of 2^i to 2^(i+1)-1 pages that came in a row.
 */
size_t uffdb_engine_arrivals(const struct uffdb_engine *engine, uint64_t *out, size_t nr);

/**
 * uffdb_engine_follow - arm what was given up since the last time, let go what is empty.
 *
 * The gap between a discard and its window is closed by residency: a page that
 * is there all the same, at two looks, was touched, and is judged now.
 *
 * Return: 1 when something was there to do, or is left for the next time; 0 when
 *         all is quiet; -ENOMEM as uffdb_engine_inflate(), and the rest is armed.
 */
int uffdb_engine_follow(struct uffdb_engine *engine);

/**
 * uffdb_engine_start - run the fault loop on a thread of its own.
 *
 * The thread has every signal blocked but SIGRTMAX-1, for which a handler that
 * does nothing is installed: it is how a blocking read is ended.
 */
int uffdb_engine_start(struct uffdb_engine *engine);

/**
 * uffdb_engine_resume - go on where another engine was killed; before uffdb_engine_start().
 * @missed: what the guest gave up and took back meanwhile was not observed
 *
 * The ledger is that of uffdb_ledger_create_in(), and the userfaultfd is the same one. What is
 * ballooned is trapped, and nothing else; every thread that waits in a fault faults anew; a boot
 * grace goes on. What was being taken, and is still there, is given back. With @missed no ballooned
 * page is held to `told` until it is given up anew.
 *
 * Return: 0 or as uffdb_uffd_register().
 */
int uffdb_engine_resume(struct uffdb_engine *engine, bool missed);

/**
 * uffdb_engine_yield - lift every trap, and keep the ledger.
 *
 * For a VMM that needs the memory's only userfaultfd itself, as QEMU does for a background
 * snapshot. Every thread that waits in a fault goes on. What is inflated and deflated from here on
 * is in the ledger alone. What was yielded already is no error.
 *
 * Context: any thread.
 * Return: 0 or as uffdb_uffd_unregister().
 */
int uffdb_engine_yield(struct uffdb_engine *engine);

/**
 * uffdb_engine_take_up - trap again what the ledger says, after uffdb_engine_yield().
 *
 * What holds memory by now was touched while nobody trapped it, or was filled beside such a page:
 * it is the guest's, and no violation.
 *
 * Return: number of pages that are the guest's now; -EBUSY while another userfaultfd holds the
 *         memory, or as uffdb_uffd_register(): all is yielded as before then.
 */
int64_t uffdb_engine_take_up(struct uffdb_engine *engine);

/** uffdb_engine_yielded - whether all traps are lifted. Any thread. */
bool uffdb_engine_yielded(const struct uffdb_engine *engine);

/** uffdb_engine_stop - end the fault loop; faults wait from now on until the fd is closed. */
void uffdb_engine_stop(struct uffdb_engine *engine);

/**
 * uffdb_engine_inflate - trap a range and call it ballooned; to be zapped right after.
 *
 * The 2 MiB blocks that hold it are armed first, clipped to their RAM block. Every
 * fault that was read before is answered when this returns, so that nothing is
 * filled any more that the zap then drops.
 *
 * Context: one controlling thread; the fault loop may run. So are those below.
 * Return: number of pages that were not ballooned; -EBUSY, -ENOMEM as
 *         uffdb_uffd_register(); -ENOENT outside of the RAM blocks; -EINVAL when it
 *         is not whole pages, of 2 MiB with UFFDB_BLOCK_HUGETLB. Then nothing more is
 *         armed than before.
 */
int64_t uffdb_engine_inflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

/**
 * uffdb_engine_inflated - all that was taken by uffdb_engine_inflate() has been zapped, or given
 * back.
 *
 * Needed for a ledger in a file: what was not zapped is given back by uffdb_engine_resume(). So is
 * what holds memory between ranges that were taken and not zapped yet.
 */
void uffdb_engine_inflated(struct uffdb_engine *engine);

/**
 * uffdb_engine_deflate - give pages back: clear the ledger, lift all traps of theirs.
 *
 * Who was held there goes on. Blocks without a ballooned page left are
 * unregistered; the kernel's own fault path, with THP, serves them again.
 *
 * Return: number of pages that were ballooned; -ENOENT, -EINVAL as uffdb_engine_inflate(), and
 *         then nothing was changed; another -errno.
 */
int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

/**
 * uffdb_engine_reset - the guest was reset: nothing is ballooned, held or trapped any more.
 * @at_ns: CLOCK_MONOTONIC; what was observed after it holds. 0: nothing does.
 */
int uffdb_engine_reset(struct uffdb_engine *engine, uint64_t at_ns);

/**
 * uffdb_engine_look - find out what was taken back unseen, and take it out of the ledger.
 *
 * With @slackens of the config the first touch of a 2 MiB block that is all in the balloon has the
 * windows around it, 32 MiB at most, trap nothing until nothing more is taken there; the rest of
 * the balloon, which is trapped, is never below the floor by that. The thread that follows looks at
 * them every 100 ms; so does this call, for whoever needs the ledger to be exact.
 *
 * Return: bytes that were taken, or -errno.
 */
int64_t uffdb_engine_look(struct uffdb_engine *engine);

/**
 * uffdb_engine_tidy - unregister windows that lost their last ballooned page to a grant.
 *
 * Return: number of 2 MiB blocks that were let go, or -errno.
 */
int uffdb_engine_tidy(struct uffdb_engine *engine);

/* ---- relay: QEMU's monitor, read before its client reads it ---- */

struct uffdb_relay;

/**
 * uffdb_relay_create - hand bytes on between QEMU's monitor and its client, both ways.
 * @monitor: socket that is connected to QEMU
 * @client:  one end of a socket pair; the client has the other. -1: nobody reads what comes
 * @memory:  as for uffdb_relay_note_in(), from the first byte on; -1: none
 *
 * A thread does it, until either side ends; then the other sees an end, too. Both
 * sockets are the relay's from here on, unless this fails. What comes from QEMU leaves the
 * socket by whole lines, but for lines that are longer than any event.
 */
int uffdb_relay_create(int monitor, int client, int memory, struct uffdb_relay **out);
void uffdb_relay_destroy(struct uffdb_relay *relay);

/**
 * uffdb_relay_note_in - note resets in a memfd that holds a ledger, for whoever comes after us.
 *
 * Before an engine watches it. Once is enough: another call does nothing.
 *
 * Return: 0, -EINVAL for a file without a ledger, or another -errno.
 */
int uffdb_relay_note_in(struct uffdb_relay *relay, int memory);

/** uffdb_relay_keep - whether to leave the connection, at our end, to who else holds it. */
void uffdb_relay_keep(struct uffdb_relay *relay, bool keeps);

/**
 * uffdb_engine_watch_resets - judge no touch by a picture from before a reset.
 * @relay: must outlive the engine, or this call with another one; NULL: none
 *
 * When the monitor has told of a reset, the balloon is emptied as by
 * uffdb_engine_reset(), before the next violation is acted on.
 */
void uffdb_engine_watch_resets(struct uffdb_engine *engine, struct uffdb_relay *relay);

/**
 * uffdb_engine_yield_at_migration - yield as soon as the monitor tells that a migration begins.
 * @relay: which sees it, before its client does; must be open
 * @yields: whether to; without, none is under way when this returns
 *
 * To be called with false before the engine is stopped.
 */
void uffdb_engine_yield_at_migration(struct uffdb_engine *engine, struct uffdb_relay *relay,
				     bool yields);

/**
 * uffdb_engine_set_vcpus - say which threads are the guest.
 *
 * With an empty list every thread is.
 */
int uffdb_engine_set_vcpus(struct uffdb_engine *engine, const int32_t *tids, size_t nr);

/**
 * uffdb_engine_set_policy - judge and answer by another ladder, by other terms, or by both.
 * @rungs: the gentlest first, or NULL: the ladder stays
 * @terms: or NULL: they stay
 *
 * At once, between two touches. Touches that freeze or throttle holds are judged anew: what is
 * granted now goes on. Of the others a new ladder decides: what it freezes, too, stays frozen, for
 * as long as the new freeze says, counted from when it began to be held; the rest is answered by
 * it. They are not counted as violations again. What waits for the monitor, to be poisoned or for
 * memory goes on waiting, as it was.
 *
 * A throttle's bucket begins anew with @rungs. A boot grace that runs ends when @terms have another
 * kind or other limits of it; the next reset begins one. A floor above what is in the balloon takes
 * nothing: what is touched next is a violation. Counters stay.
 *
 * With a ledger in a file the terms are kept there, as far as uffdb_engine_resume() goes on with a
 * boot grace; the ladder is not: a note (UFFDB_NOTE_OFFSET) may be.
 *
 * Return: number of touches that were held and are no longer, or -EINVAL for rungs that
 *         uffdb_engine_create() refuses: nothing is changed then.
 */
int uffdb_engine_set_policy(struct uffdb_engine *engine, const struct uffdb_rung *rungs,
			    uint32_t nr_rungs, const struct uffdb_terms *terms);

/** uffdb_engine_contract - read the contract with its state. */
void uffdb_engine_contract(struct uffdb_engine *engine, struct uffdb_contract *out);

/* A touch that is held. */
struct uffdb_parked {
	uint64_t id;
	uint64_t hva;
	uint64_t size;
	uint64_t since_ns;    /* CLOCK_MONOTONIC */
	uint64_t deadline_ns; /* 0: until released */
	uint32_t tid;
	uint8_t write;
	uint8_t action; /* that holds it */
	uint8_t reserved[2];
};

/** uffdb_engine_parked - list what is held. Return: number of entries, at most @nr. */
size_t uffdb_engine_parked(struct uffdb_engine *engine, struct uffdb_parked *out, size_t nr);

enum uffdb_resolution {
	UFFDB_RESOLVE_GRANT,
	UFFDB_RESOLVE_NEXT,   /* go on with the next rung */
	UFFDB_RESOLVE_POISON, /* the page was zapped; grant it if it cannot be poisoned */
};

/** uffdb_engine_resolve - answer a held touch. Return: 0, or -ENOENT when it is not held. */
int uffdb_engine_resolve(struct uffdb_engine *engine, uint64_t id, uint32_t how);

/**
 * uffdb_engine_release - grant what the frozen thread @tid touched, or all such with 0.
 *
 * Return: number of touches that were released.
 */
int uffdb_engine_release(struct uffdb_engine *engine, uint32_t tid);

/** uffdb_engine_event_fd - an eventfd, readable while events wait after an empty drain. */
int uffdb_engine_event_fd(const struct uffdb_engine *engine);

/**
 * uffdb_engine_drain - take events.
 *
 * Context: one consuming thread.
 * Return: number of events; 0 arms the eventfd.
 */
size_t uffdb_engine_drain(struct uffdb_engine *engine, struct uffdb_event *events, size_t nr);

/**
 * uffdb_engine_stats - read the counters.
 *
 * What any thread can have seen of the engine is in them: a touch that was answered before this
 * call is counted, with all that its answer did. The same holds for uffdb_engine_drain(), for
 * uffdb_engine_latency() and for uffdb_engine_latencies(). The fault loop counts a touch before or
 * after it has answered it; so all four wait for the end of the turn that they find it in: one
 * batch of faults and one call at most. They stop nothing and make the loop do nothing.
 *
 * Context: any thread but the fault loop's.
 */
void uffdb_engine_stats(const struct uffdb_engine *engine, struct uffdb_stats *stats);

/**
 * uffdb_engine_latency - percentile of the time from reading a fault to its answer.
 * @permille: 0 to 1000
 *
 * Return: nanoseconds, at most 1/16 above the true value; 0 without samples.
 */
uint64_t uffdb_engine_latency(const struct uffdb_engine *engine, uint32_t permille);

struct uffdb_bucket {
	uint64_t top; /* the largest value that counts here */
	uint64_t count;
};

/** uffdb_engine_latencies - list the buckets that are not empty. Return: their number. */
size_t uffdb_engine_latencies(const struct uffdb_engine *engine, struct uffdb_bucket *out,
			      size_t nr);

/* ---- keeper: holds the userfaultfd while there is no manager ---- */

#define UFFDB_MOST_KEPT 8

enum uffdb_keeper_word {
	UFFDB_KEEPER_SERVES = 'S',  /* a manager answers faults now */
	UFFDB_KEEPER_RELEASE = 'R', /* all is to be let go */
};

struct uffdb_keeper {
	int listener; /* Unix socket; who connects, and is root or of our uid, gets what is kept */
	int pidfd;    /* of the target */
	int manager;  /* one end of a socket pair; the manager has the other */
	/* Handed over in this order; the first is closed before the manager is hung up on. */
	int kept[UFFDB_MOST_KEPT];
	uint32_t nr_kept;
	uint64_t hold_ns; /* how long to wait for another manager that serves */
};

/**
 * uffdb_keeper_start - have a process of its own hold these, without any capability.
 *
 * It ends when the target has, when the manager sends UFFDB_KEEPER_RELEASE, and when the manager
 * has hung up and no other has sent UFFDB_KEEPER_SERVES in time. A manager gets one byte with the
 * fds, and its connection is then what tells that it lives. The first one serves from the start.
 *
 * Return: its pid or -errno.
 */
int uffdb_keeper_start(const struct uffdb_keeper *keeper);

/* ---- cells: a picture of guest memory ---- */

/* What is known of 2 MiB of guest memory; counts are of 4 KiB pages. */
struct uffdb_cell {
	uint16_t pages; /* of RAM: fewer where RAM ends */
	uint16_t ballooned;
	uint16_t resident; /* hold memory of their own: there or swapped out, not the zero page */
	uint16_t huge;	   /* of these: mapped by a huge page; 0 on a kernel without PAGEMAP_SCAN */
	uint8_t armed;	   /* a window covers it, or a part of it */
	uint8_t reserved[7];
	uint64_t touched_ns; /* last violation or grant, CLOCK_MONOTONIC; 0: none */
};

/**
 * uffdb_engine_cells - add what is known of a range of one RAM block to cells of 2 MiB.
 * @lead:  bytes of the first cell that lie before @hva; below 2 MiB
 * @cells: @nr of them, zeroed before the first range that is added
 *
 * Cells are the caller's: they need not lie as the host's own blocks of 2 MiB do.
 * It takes the target's mmap lock for reading and walks its page tables: give
 * a large range in pieces.
 *
 * Context: the controlling thread.
 * Return: 0; -ENOENT outside of the RAM blocks; -EINVAL when it is not whole pages
 *         or does not fit; -errno of the walk.
 */
int uffdb_engine_cells(const struct uffdb_engine *engine, uint64_t hva, uint64_t len, uint64_t lead,
		       struct uffdb_cell *cells, size_t nr);

/* The first of these that is so, from the end. */
enum uffdb_cell_state {
	UFFDB_CELL_ABSENT,     /* holds no memory */
	UFFDB_CELL_OWNED_HUGE, /* most of its memory is mapped by huge pages */
	UFFDB_CELL_OWNED_4K,
	UFFDB_CELL_ARMED, /* a window covers it, nothing in it is ballooned */
	UFFDB_CELL_BALLOONED,
	UFFDB_CELL_PARTLY,
	UFFDB_CELL_TOUCHED, /* violated or granted, since the time given */
};

/** uffdb_cell_states - tell what cells are, each in a byte: enum uffdb_cell_state. */
void uffdb_cell_states(const struct uffdb_cell *cells, size_t nr, uint64_t since_ns,
		       uint8_t *states);

/* ---- reclaimer: gives back what is zapped, and pinned by the rest of its huge page ---- */

struct uffdb_reclaimer;

struct uffdb_reclaim_config {
	int pidfd;
	int pagemap_fd;
	int kpageflags_fd; /* /proc/kpageflags, or -1: nothing is known of huge pages */
	const struct uffdb_engine *engine; /* tells what is armed, or NULL */
};

/**
 * uffdb_reclaimer_create - make a reclaimer of what the ledger calls ballooned.
 *
 * A ledger has one at most. The fds, @ledger and the engine must outlive it.
 */
int uffdb_reclaimer_create(const struct uffdb_reclaim_config *config, struct uffdb_ledger *ledger,
			   struct uffdb_reclaimer **out);
void uffdb_reclaimer_destroy(struct uffdb_reclaimer *reclaimer);

/**
 * uffdb_reclaimer_pass - split some partially mapped huge pages that hold ballooned pages.
 * @max_blocks: split at most that many
 * @settle_ns:	leave blocks alone of which a page was given up for so long, at least: the
 *		guest may be about to give up all of it, which frees it with no work. 0: none
 *
 * By MADV_COLD from outside, of one page for each huge page: that splits all of it,
 * and ages that one page only.
 *
 * Context: the controlling thread, as all of the reclaimer. Nothing is stopped.
 * Return: number of 2 MiB blocks that were worked on; -ESRCH when the target is gone.
 */
int uffdb_reclaimer_pass(struct uffdb_reclaimer *reclaimer, uint32_t max_blocks,
			 uint64_t settle_ns);

struct uffdb_reclaim_stats {
	uint64_t pending_blocks; /* 0: nothing is left to be looked at, or to be tried again */
	uint64_t looked_blocks;
	uint64_t split_blocks;
	uint64_t failed_blocks; /* still not split after some tries: somebody holds the page */
	uint64_t advised_pages; /* that were aged for it */
	uint64_t freed_pages;	/* ballooned, and free by it; 0 when pages cannot be told */
	uint64_t calls_ns;	/* spent in process_madvise() */
	uint32_t sees_folios;	/* huge pages can be told: pagemap and kpageflags show them */
	uint32_t reserved;
};

void uffdb_reclaimer_stats(const struct uffdb_reclaimer *reclaimer,
			   struct uffdb_reclaim_stats *stats);

/* How khugepaged would go about it. */
struct uffdb_khugepaged {
	uint32_t max_ptes_none;
	bool collapses_private;
	bool collapses_shared;
};

struct uffdb_reclaim_measure {
	uint64_t ballooned_pages;
	uint64_t resident_pages;   /* of them that are there all the same */
	uint64_t pinned_pages;	   /* not there, and a part of a huge page that still is */
	uint64_t pinned_blocks;	   /* 2 MiB blocks with pinned pages */
	uint64_t eligible_blocks;  /* that khugepaged would fill, were they not armed */
	uint64_t unguarded_blocks; /* that it can fill: they are not armed */
};

/**
 * uffdb_reclaimer_measure - count what is really free of a stretch of one RAM block.
 * @of:		whole 2 MiB blocks, as far as they belong to the RAM block; what is left of it is
 *		told there, for the next call: empty at the end
 * @max_blocks: measure at most that many, of those with ballooned pages
 * @out:	what is there already is added to; zeros at first
 *
 * Walks the page tables of all that is ballooned; of blocks that were not seen to be
 * split, the flags of their pages, too. That may take half a millisecond a block.
 *
 * Return: 0 or -errno; -ENOENT outside of the RAM blocks.
 */
int uffdb_reclaimer_measure(struct uffdb_reclaimer *reclaimer, struct uffdb_range *of,
			    uint32_t max_blocks, const struct uffdb_khugepaged *khugepaged,
			    struct uffdb_reclaim_measure *out);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
