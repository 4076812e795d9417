/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Calls that are made on the loop's thread, between two batches, for those that wait for it. */
#ifndef UFFDB_MAILBOX_H
#define UFFDB_MAILBOX_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

struct uffdb_engine;

typedef void uffdb_loop_call(struct uffdb_engine *engine, void *argument);

struct uffdb_mailbox {
	pthread_mutex_t calling; /* inside of the engine's @control, where both are held */
	_Atomic(uffdb_loop_call *) call;
	void *argument;
	sem_t done;
	sem_t held, let_go; /* of uffdb_hold_loop() */
};

void uffdb_mailbox_init(struct uffdb_mailbox *mailbox);
void uffdb_mailbox_release(struct uffdb_mailbox *mailbox);

/*
 * Make a call on the loop's thread, and wait for it. Every fault that was read before it is judged
 * and answered by then; and what was traced before it is taken in.
 */
void uffdb_call_on_loop(struct uffdb_engine *engine, uffdb_loop_call *call, void *argument);

/* The loop's: make the call that somebody waits for. */
void uffdb_serve_call(struct uffdb_engine *engine);

/* Have the loop answer nothing until it is let go. False when there is none that answers. */
bool uffdb_hold_loop(struct uffdb_engine *engine);
void uffdb_let_loop_go(struct uffdb_engine *engine);

/* End its read(). May come just before that: repeat it. */
void uffdb_wake_loop(struct uffdb_engine *engine);

#endif
