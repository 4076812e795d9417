/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of the engine share: fault_engine.c runs, ladder.c acts, answer.c answers,
 * parking.c holds. All of it belongs to the fault loop; others ask by uffdb_engine_on_loop(). */
#ifndef UFFDB_ENGINE_H
#define UFFDB_ENGINE_H

#include <pthread.h>
#include <semaphore.h>
#include <time.h>

#include "internal.h"

#define UFFDB_BATCH	 64
#define UFFDB_MAX_PARKED 4096 /* a thread waits for one page at a time; no more are held */
#define UFFDB_RETRIES	 64

/* A fault that was read, and what there is to know about its page. */
struct touch {
	uint64_t hva; /* of the page, which is @size large */
	uint64_t size;
	uint64_t read_ns;
	uint32_t tid;
	uint8_t role;
	bool write;
	bool protected; /* the page is there, write-protected */
	bool ballooned;
	const struct uffdb_block *block;
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

typedef void uffdb_loop_call(struct uffdb_engine *engine, void *argument);

struct uffdb_engine {
	struct uffdb_engine_config config;
	struct uffdb_contract contract;
	struct uffdb_ledger *ledger;
	struct uffdb_windows *windows;
	struct uffdb_ring *ring;
	struct uffdb_histogram latency;
	struct uffdb_placement placement;
	struct uffdb_roles roles;
	void *zeros; /* 2 MiB, for UFFDIO_COPY */

	pthread_t thread;
	bool running;
	_Atomic bool stop;
	_Atomic bool stopped;

	/* A call that a controlling thread wants made between two batches. */
	_Atomic(uffdb_loop_call *) call;
	void *call_argument;
	sem_t call_done;

	/* What was filled since the batch was read: who waited there is awake. */
	struct uffdb_range filled[UFFDB_BATCH];
	size_t nr_filled;
	uint64_t around_next; /* where a walk through memory would fault next */
	uint64_t around_len;

	struct parked *parked;
	uint32_t nr_parked;
	uint64_t last_id;
	timer_t deadline_timer;
	bool timer_made;

	uint64_t tokens; /* of the throttle: bytes, and when they were counted */
	uint64_t tokens_ns;

	uint64_t seq;
	_Atomic uint64_t ordinary, granted, violations, host_reads;
	_Atomic uint64_t actions[UFFDB_ACTIONS];
	_Atomic uint64_t slipped_writes, exists, retried, gone, failed, together, around_pages;
	_Atomic uint64_t events_posted, events_dropped, moves, parked_now;
};

static inline void uffdb_count(_Atomic uint64_t *counter, uint64_t more)
{
	/* The fault loop is the only writer: no need for a locked addition. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more,
			      memory_order_relaxed);
}

uint64_t uffdb_now_ns(clockid_t clock);

/*
 * fault_engine.c: make a call on the loop's thread, between two batches, and wait for it. Every
 * fault that was read before it is judged and answered by then.
 */
void uffdb_engine_on_loop(struct uffdb_engine *engine, uffdb_loop_call *call, void *argument);

/* answer.c */
void uffdb_let_retry(struct uffdb_engine *engine, const struct touch *touch);
void uffdb_give_page(struct uffdb_engine *engine, const struct touch *touch);
void uffdb_give_around(struct uffdb_engine *engine, const struct touch *touch);
bool uffdb_poison_page(struct uffdb_engine *engine, const struct touch *touch);

enum uffdb_zeroed {
	UFFDB_ZEROED,
	UFFDB_ZEROED_BY_ANOTHER,
	UFFDB_WRITTEN, /* it is a write by now, and the page is there */
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

/* parking.c */
int uffdb_parking_init(struct uffdb_engine *engine);
void uffdb_parking_release(struct uffdb_engine *engine);
void uffdb_parking_start_timer(struct uffdb_engine *engine);
void uffdb_parking_stop_timer(struct uffdb_engine *engine);
bool uffdb_park(struct uffdb_engine *engine, const struct touch *touch, uint32_t rung,
		uint8_t action, uint64_t deadline_ns);
bool uffdb_is_parked_already(struct uffdb_engine *engine, const struct touch *touch);
void uffdb_unpark_range(struct uffdb_engine *engine, uint64_t hva, uint64_t len, bool wake);
void uffdb_expire(struct uffdb_engine *engine);

#endif
