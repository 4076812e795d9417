/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a fault is answered: one ioctl, and nobody left asleep whatever comes of it. Who is answered
 * is another's business: it knows neither contract, nor ladder, nor who is held.
 */
#ifndef UFFDB_ANSWER_H
#define UFFDB_ANSWER_H

#include "counters.h"
#include "touch.h"

#define UFFDB_BATCH 64 /* faults that are read, and answered, together */

struct uffdb_answerer {
	int uffd;
	int pagemap_fd;	   /* or -1 */
	const void *zeros; /* 2 MiB */
	bool write_protect, write_protect_shared;
	uint64_t around_bytes; /* fill so much around a touch of owned memory, at most */
	uint64_t around_next;  /* where a walk through memory would fault next */
	uint64_t around_len;
	uint64_t last_fill_ns;		   /* when pages were filled last that nobody had touched */
	const struct uffdb_ledger *ledger; /* what is ballooned is not filled */
	struct uffdb_counters *counters;

	/* What was filled since the batch was read: who waited there is awake. */
	struct uffdb_range filled[UFFDB_BATCH];
	size_t nr_filled;
};

/* A batch was read: all that was filled before is there for it to see. */
static inline void uffdb_answer_begin_batch(struct uffdb_answerer *answerer)
{
	answerer->nr_filled = 0;
}

/* Was the page filled since the batch was read? Then whoever touched it is awake already. */
bool uffdb_answer_is_given(const struct uffdb_answerer *answerer, uint64_t hva);

/* Given zeros, can a page of this block trap the write that may follow? */
bool uffdb_answer_can_trap_zeros(const struct uffdb_answerer *answerer,
				 const struct uffdb_block *block);

/* Pages were filled, or left to the kernel, and who waited there was woken. */
void uffdb_answer_note_given(struct uffdb_answerer *answerer, const struct uffdb_range *range);

/*
 * Let the thread try again: it faults anew if it must. Right after every answer
 * that could not be given, since a thread that nobody wakes waits for ever.
 */
void uffdb_answer_retry(const struct uffdb_answerer *answerer, const struct uffdb_touch *touch);

/* Lift the protection of pages, or the mark that it left, and wake who waits there. */
void uffdb_answer_unprotect(struct uffdb_answerer *answerer, const struct uffdb_range *range);

/* Give the page, as it is or filled. Return: 0; -ENOMEM: its thread is asleep. */
int uffdb_answer_page(struct uffdb_answerer *answerer, const struct uffdb_touch *touch);

/*
 * Give a page that is the guest's, and the absent ones that follow it, as far as makes sense. One
 * call; it ends at the first page that is there. Return: bytes; 0: it has to be given alone.
 */
uint64_t uffdb_answer_around(struct uffdb_answerer *answerer, const struct uffdb_touch *touch);

/* Fill a page of which there are only so many, its thread still asleep: 0 or -ENOMEM. */
int uffdb_answer_fill_asleep(struct uffdb_answerer *answerer, const struct uffdb_touch *touch);

/* Wake who waits for what uffdb_answer_fill_asleep() has filled. */
void uffdb_answer_wake(struct uffdb_answerer *answerer, const struct uffdb_touch *touch);

enum uffdb_zeroed {
	UFFDB_ZEROED,
	UFFDB_ZEROED_BY_ANOTHER,
	UFFDB_WRITTEN,	   /* it is a write by now, and the page is there */
	UFFDB_UNPROTECTED, /* zeros are there, and the next write will not be seen */
	UFFDB_NO_PAGE,	   /* the host has none; its thread is asleep */
};

/*
 * Give a reader zeros and trap the write that may follow; the reader is still
 * asleep when this returns UFFDB_ZEROED or UFFDB_WRITTEN.
 */
enum uffdb_zeroed uffdb_answer_zeros(struct uffdb_answerer *answerer,
				     const struct uffdb_touch *touch);

/* Poison an absent page. Return: 0; -EEXIST when it is there; -ENOTTY where the kernel cannot. */
int uffdb_answer_poison(const struct uffdb_answerer *answerer, const struct uffdb_touch *touch);

#endif
