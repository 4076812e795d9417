/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of the engine share: fault_engine.c runs, ladder.c acts, answer.c answers,
 * parking.c holds. All of it belongs to the fault loop; others ask by uffdb_engine_on_loop(). */
#ifndef UFFDB_ENGINE_H
#define UFFDB_ENGINE_H

#include <pthread.h>
#include <semaphore.h>
#include <time.h>

#include "clock.h"
#include "counter.h"
#include "histogram.h"
#include "ledger.h"
#include "pagemap.h"
#include "pages.h"
#include "placement.h"
#include "process.h"
#include "ring.h"
#include "roles.h"
#include "signals.h"
#include "thread_ids.h"
#include "touched.h"
#include "windows.h"

#define UFFDB_BATCH	 64
#define UFFDB_MAX_PARKED 4096 /* a thread waits for one page at a time; no more are held */
#define UFFDB_RETRIES	 64
#define UFFDB_MAX_AGAIN	 1024

/* A fault that was read, and what there is to know about its page. */
struct touch {
	uint64_t hva; /* of the page, which is @size large */
	uint64_t size;
	uint64_t read_ns;
	uint32_t tid;
	uint8_t role;
	bool write;
	bool protected; /* the page is there, write-protected */
	bool minor;	/* it is in the file, and not mapped: another process filled it */
	bool late;	/* it was made before its window was there: nobody waits */
	bool ballooned;
	const struct uffdb_block *block;

	/* Held for want of memory: since when, and how it goes on. */
	uint64_t lacking_since_ns;
	enum uffdb_lacking {
		UFFDB_LACKS_PAGE,
		UFFDB_LACKS_GRANT,
		UFFDB_LACKS_ZEROS
	} lacking;
	uint8_t lacking_verdict, lacking_action; /* of the grant */
};

/* A touch that is not answered yet. */
struct parked {
	struct touch touch;
	uint64_t id;
	uint64_t since_ns;
	uint64_t deadline_ns; /* 0: none */
	uint32_t rung;	      /* that holds it */
	uint8_t action;
};

struct uffdb_observer;
struct uffdb_relay;

typedef void uffdb_loop_call(struct uffdb_engine *engine, void *argument);

struct uffdb_engine {
	struct uffdb_engine_config config;
	struct uffdb_contract contract;
	struct uffdb_ledger *ledger;
	struct uffdb_windows *windows;
	struct uffdb_ring *ring;
	struct uffdb_touched *touched;
	struct uffdb_observer *observer; /* of the guest's own balloon, or NULL */
	struct uffdb_relay *relay;	 /* that tells of resets, or NULL: the loop's */
	struct uffdb_histogram latency;
	struct uffdb_placement placement;
	struct uffdb_roles roles;
	struct uffdb_thread_ids thread_ids;
	void *zeros; /* 2 MiB, for UFFDIO_COPY */

	pthread_t thread;
	sem_t started;
	int start_error; /* of the loop's thread, before it said that it is there */
	bool running;
	_Atomic bool stop;
	_Atomic bool stopped;

	/* Held by whoever changes windows or ledger from outside of the loop, one at a time. */
	pthread_mutex_t control;

	/* follower.c */
	pthread_t follower;
	bool follows;
	_Atomic bool stop_following;
	int wake_fd, news_fd; /* eventfds */
	_Atomic int follow_error;
	_Atomic bool moving;	   /* the balloon did, a moment ago */
	_Atomic uint32_t nr_again; /* ranges that are to be zapped again: again.c */
	struct uffdb_range again[UFFDB_MAX_AGAIN];
	bool holds_loop;
	sem_t held, go_on;

	/* A call that a controlling thread wants made between two batches. */
	pthread_mutex_t calling; /* inside of @control, where both are held */
	_Atomic(uffdb_loop_call *) call;
	void *call_argument;
	sem_t call_done;

	/* What was filled since the batch was read: who waited there is awake. */
	struct uffdb_range filled[UFFDB_BATCH];
	size_t nr_filled;
	uint64_t last_fill_ns; /* when pages were filled last that nobody had touched */
	uint64_t around_next;  /* where a walk through memory would fault next */
	uint64_t around_len;

	struct parked *parked;
	uint32_t nr_parked;
	uint64_t last_id;
	timer_t deadline_timer;
	bool timer_made;

	uint64_t reset_ns; /* when the guest was reset last */

	uint64_t tokens; /* of the throttle: bytes, and when they were counted */
	uint64_t tokens_ns;

	/* Odd between uffdb_begin_turn() and uffdb_end_turn(). */
	_Atomic uint64_t turn;
	uint64_t seq;
	_Atomic uint64_t ordinary, granted, violations, host_reads;
	_Atomic uint64_t actions[UFFDB_ACTIONS];
	_Atomic uint64_t filled_outside;
	_Atomic uint64_t slipped_writes, exists, retried, gone, failed, together, around_pages;
	_Atomic uint64_t events_posted, events_dropped, moves, parked_now, zapped_again;
};

/*
 * fault_engine.c: make a call on the loop's thread, between two batches, and wait for it. Every
 * fault that was read before it is judged and answered by then.
 */
void uffdb_engine_on_loop(struct uffdb_engine *engine, uffdb_loop_call *call, void *argument);

/*
 * fault_engine.c: the loop's turn, in which it answers touches and counts them, before or after
 * the answer. Who reads the counters waits for its end; so a loop that waits for others has none.
 */
void uffdb_begin_turn(struct uffdb_engine *engine);
void uffdb_end_turn(struct uffdb_engine *engine);

/* fault_engine.c: empty the balloon if a reset was heard of that had no effect yet, by whomever. */
void uffdb_hear_of_kept_reset(struct uffdb_engine *engine);

/* fault_engine.c: judge a touch that was made before its page was trapped. */
void uffdb_judge_late(struct uffdb_engine *engine, uint64_t hva, uint64_t size);

/* follow.c: call @each for what @find finds in the ballooned stretches of a range. */
typedef void uffdb_each_range(struct uffdb_engine *engine, const struct uffdb_range *range,
			      void *argument);
typedef int uffdb_find_ranges(int pagemap_fd, uint64_t start, uint64_t end, struct uffdb_range *out,
			      size_t nr, uint64_t *next);
int uffdb_in_ballooned(struct uffdb_engine *engine, const struct uffdb_range *in,
		       uffdb_find_ranges *find, uffdb_each_range *each, void *argument);

/* follow.c: with @control held, as uffdb_engine_follow() and uffdb_engine_scan(). */
int uffdb_follow(struct uffdb_engine *engine);
int64_t uffdb_scan(struct uffdb_engine *engine);

/* follower.c */
int uffdb_follower_create(struct uffdb_engine *engine);
void uffdb_follower_destroy(struct uffdb_engine *engine);
int uffdb_follower_start(struct uffdb_engine *engine);
void uffdb_follower_stop(struct uffdb_engine *engine);
/* Any thread. */
void uffdb_follower_wake(struct uffdb_engine *engine);

/* answer.c */
void uffdb_let_retry(struct uffdb_engine *engine, const struct touch *touch);
void uffdb_give_page(struct uffdb_engine *engine, const struct touch *touch);
void uffdb_give_around(struct uffdb_engine *engine, const struct touch *touch);
bool uffdb_poison_page(struct uffdb_engine *engine, const struct touch *touch);
/* Fill a page of which there are only so many, its thread still asleep: 0 or -ENOMEM. */
int uffdb_fill_scarce(struct uffdb_engine *engine, const struct touch *touch);
/* Answer what uffdb_fill_scarce() has filled. */
void uffdb_wake_filled(struct uffdb_engine *engine, const struct touch *touch);

enum uffdb_zeroed {
	UFFDB_ZEROED,
	UFFDB_ZEROED_BY_ANOTHER,
	UFFDB_WRITTEN,	   /* it is a write by now, and the page is there */
	UFFDB_UNPROTECTED, /* zeros are there, and the next write will not be seen */
	UFFDB_NO_PAGE,	   /* the host has none; its thread is asleep */
};
enum uffdb_zeroed uffdb_arm_zeros(struct uffdb_engine *engine, const struct touch *touch);
bool uffdb_is_zero_readable(const struct uffdb_engine *engine, const struct touch *touch);

/* ladder.c */
void uffdb_post(struct uffdb_engine *engine, const struct touch *touch, uint8_t verdict,
		uint8_t action);
void uffdb_take_out(struct uffdb_engine *engine, const struct touch *touch);
void uffdb_act(struct uffdb_engine *engine, struct touch *touch, uint32_t rung);
void uffdb_grant(struct uffdb_engine *engine, const struct touch *touch, uint8_t verdict,
		 uint8_t action);
bool uffdb_zero_read(struct uffdb_engine *engine, struct touch *touch);

/* ladder.c: end the target, and tell of it. */
void uffdb_kill_target(struct uffdb_engine *engine, const struct touch *touch, uint8_t verdict);

/* scarce.c: hold a touch that the host has no memory for, and tell of it; try it again. */
void uffdb_hold_for_memory(struct uffdb_engine *engine, const struct touch *touch,
			   enum uffdb_lacking lacking);
void uffdb_try_again(struct uffdb_engine *engine, struct touch *touch);

/* parking.c */
int uffdb_parking_init(struct uffdb_engine *engine);
void uffdb_parking_release(struct uffdb_engine *engine);
int uffdb_parking_start_timer(struct uffdb_engine *engine);
void uffdb_parking_stop_timer(struct uffdb_engine *engine);
bool uffdb_park(struct uffdb_engine *engine, const struct touch *touch, uint32_t rung,
		uint8_t action, uint64_t deadline_ns);
bool uffdb_is_parked_already(struct uffdb_engine *engine, const struct touch *touch);
void uffdb_unpark_range(struct uffdb_engine *engine, uint64_t hva, uint64_t len, bool wake);
void uffdb_expire(struct uffdb_engine *engine);

#endif
