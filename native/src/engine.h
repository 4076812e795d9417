/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of the engine share. All of it belongs to the fault loop, unless said; others
 * have it do what they want, by mailbox.h.
 *
 * A touch goes down: loop.c reads it, judge.c says what it means, settle.c does what ladder.c
 * decides, by answer.c or parking.c. No file calls one that it is called by
 * (tests/native/test_files.py).
 */
#ifndef UFFDB_ENGINE_H
#define UFFDB_ENGINE_H

#include <pthread.h>
#include <semaphore.h>

#include "alarm.h"
#include "answer.h"
#include "counters.h"
#include "events.h"
#include "histogram.h"
#include "ladder.h"
#include "lent.h"
#include "mailbox.h"
#include "parking.h"
#include "placement.h"
#include "roles.h"
#include "thread_ids.h"
#include "turn.h"
#include "windows.h"

#define UFFDB_MAX_AGAIN 1024

struct uffdb_observer;
struct uffdb_relay;

/* slack.c */
struct uffdb_slack {
	bool on;
	_Atomic uint64_t taken_bytes; /* the loop's, ever */
	uint32_t runs;		      /* that went slack; whoever holds @control, as those below */
	uint32_t quiet_looks;
	uint64_t seen_bytes; /* of @taken_bytes, as of the last look */
};

struct uffdb_engine {
	struct uffdb_engine_config config;
	struct uffdb_contract contract;
	struct uffdb_ledger *ledger;
	struct uffdb_windows *windows;
	struct uffdb_observer *observer; /* of the guest's own balloon, or NULL */
	struct uffdb_relay *relay;	 /* that tells of resets, or NULL: the loop's */
	uint64_t reset_ns;		 /* when the guest was reset last */

	struct uffdb_answerer answerer;
	struct uffdb_ladder ladder;
	struct uffdb_parking parking;
	struct uffdb_lent lent;
	struct uffdb_memory_file *memory_files; /* as many as the config has */
	uint64_t lent_alarm_ns;			/* when the alarm is set to for what is lent */
	struct uffdb_alarm alarm; /* at the earliest deadline of what is held or lent */
	struct uffdb_events events;
	struct uffdb_counters counters;
	struct uffdb_histogram latency;
	struct uffdb_turn turn;
	struct uffdb_placement placement;
	struct uffdb_roles roles;
	struct uffdb_thread_ids thread_ids;

	/* loop.c: its thread */
	pthread_t thread;
	sem_t started;
	int start_error; /* of the loop's thread, before it said that it is there */
	bool running;
	_Atomic bool stop;
	_Atomic bool stopped;
	struct uffdb_mailbox mailbox;

	/* Held by whoever changes windows or ledger from outside of the loop, one at a time. */
	pthread_mutex_t control;

	/* follower.c */
	pthread_t follower;
	bool follows;
	_Atomic bool stop_following;
	int wake_fd, news_fd; /* eventfds */
	_Atomic int follow_error;
	_Atomic bool moving; /* the balloon did, a moment ago */

	/* zapqueue.c */
	_Atomic uint32_t nr_again; /* ranges that are to be zapped again */
	struct uffdb_range again[UFFDB_MAX_AGAIN];
	bool holds_loop;

	struct uffdb_slack slack;

	/* gift.c */
	uint64_t awaited_hva; /* the block whose touch found the windows busy last */
	uint32_t awaited;     /* so often */

	/* yield.c */
	_Atomic bool yielded; /* no window is registered, and nothing is judged */
};

#endif
