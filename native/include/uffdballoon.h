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

/**
 * uffdb_version - the version of this library, as "1.2.3".
 *
 * Return: a string that lives as long as the process.
 */
const char *uffdb_version(void);

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
 * Return: 0; -EBUSY when another userfaultfd has it; -ENOMEM when the target is
 *         gone or has no room for the VMAs (vm.max_map_count).
 */
int uffdb_uffd_register(int uffd, uint64_t hva, uint64_t len, uint32_t modes);

/** uffdb_uffd_unregister - trap no more; wakes every waiter and lifts write protection. */
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

#define UFFDB_BLOCK_SHARED  1u /* MAP_SHARED: there is no zero page to share */
#define UFFDB_BLOCK_HUGETLB 2u /* pages of 2 MiB that are trapped and answered whole */

struct uffdb_block {
	uint64_t hva;
	uint64_t size;
	uint32_t flags;
	uint32_t reserved;
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

/**
 * uffdb_ledger_next - find the first ballooned stretch in a range of one RAM block.
 *
 * Return: 1 with @out, 0 when there is none, -ENOENT.
 */
int uffdb_ledger_next(const struct uffdb_ledger *ledger, uint64_t hva, uint64_t end,
		      struct uffdb_range *out);

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

struct uffdb_contract {
	uint32_t kind;
	uint32_t in_grace; /* state: a reset was, and none of the limits below is reached */
	uint64_t floor_bytes;
	uint64_t grace_ns;    /* boot grace after a reset; 0: not limited by time */
	uint64_t grace_bytes; /* 0: not limited by bytes; both 0: no grace */
	uint64_t grace_until_ns;
	uint64_t grace_left_bytes;
};

struct uffdb_judged {
	uint64_t ballooned_bytes; /* in all, with those of the touched page */
	uint64_t touched_bytes;	  /* of the touched page that are in the balloon */
	uint64_t now_ns;	  /* CLOCK_MONOTONIC */
	uint32_t role;
	uint32_t reserved;
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
	UFFDB_ACTION_RELEASE, /* what was held is granted */
};
#define UFFDB_ACTIONS	9
#define UFFDB_MAX_RUNGS 8

struct uffdb_engine_config {
	int uffd;
	int pidfd;	/* of the target */
	int pagemap_fd; /* /proc/PID/pagemap, or -1 */
	int pid;
	bool write_protect;	   /* UFFD_FEATURE_PAGEFAULT_FLAG_WP was granted */
	bool write_protect_shared; /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM was granted */
	bool follow_cpu;	   /* run where the faulting threads run, as long as it pays */
	uint32_t ring_records;	   /* a power of two */
	uint32_t nr_rungs;
	uint64_t around_bytes;	/* fill so much around a touch of owned memory; a power of two */
	uint64_t window_budget; /* at most so many windows; 0: no limit but the kernel's */
	struct uffdb_contract contract;
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
	uint64_t slipped_writes; /* came between zero page and write protection; found and judged */
	uint64_t exists;	 /* another answer was first */
	uint64_t retried;	 /* the mappings were changing */
	uint64_t gone;		 /* page or target had gone */
	uint64_t failed;	 /* answers that the kernel refused; the thread was let try again */
	uint64_t together;	 /* ordinary touches that another's answer had answered, too */
	uint64_t around_pages;	 /* filled beside those that were touched */
	uint64_t events_posted;
	uint64_t events_dropped;
	uint64_t parked; /* held right now */
	uint64_t moves;	 /* of the fault thread to another CPU */
	uint64_t windows;
	uint64_t armed_bytes;
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
 * uffdb_engine_start - run the fault loop on a thread of its own.
 *
 * The thread has every signal blocked but SIGRTMAX-1, for which a handler that
 * does nothing is installed: it is how a blocking read is ended.
 */
int uffdb_engine_start(struct uffdb_engine *engine);

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
 *         uffdb_uffd_register(), and then nothing more is armed than before;
 *         -ENOENT outside of the RAM blocks.
 */
int64_t uffdb_engine_inflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

/**
 * uffdb_engine_deflate - give pages back: clear the ledger, lift all traps of theirs.
 *
 * Who was held there goes on. Blocks without a ballooned page left are
 * unregistered; the kernel's own fault path, with THP, serves them again.
 *
 * Return: number of pages that were ballooned, or -errno.
 */
int64_t uffdb_engine_deflate(struct uffdb_engine *engine, uint64_t hva, uint64_t len);

/** uffdb_engine_reset - the guest was reset: nothing is ballooned, held or trapped any more. */
int uffdb_engine_reset(struct uffdb_engine *engine);

/**
 * uffdb_engine_tidy - unregister windows that lost their last ballooned page to a grant.
 *
 * Return: number of 2 MiB blocks that were let go, or -errno.
 */
int uffdb_engine_tidy(struct uffdb_engine *engine);

/**
 * uffdb_engine_set_vcpus - say which threads are the guest.
 *
 * With an empty list every thread is.
 */
int uffdb_engine_set_vcpus(struct uffdb_engine *engine, const int32_t *tids, size_t nr);

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

#endif
