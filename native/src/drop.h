/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Zeros that cost memory, dropped again. Shared memory has no zero page to share: UFFDIO_ZEROPAGE
 * puts a page into the file there (Linux 6.18, mfill_atomic_pte()), and hugetlbfs has no such call.
 * So what a reader was given is lent (lent.h), and punched out of the file when its time is over.
 * The window stays armed: the next touch of the page is trapped as the first one was.
 */
#ifndef UFFDB_DROP_H
#define UFFDB_DROP_H

#include "engine.h"
#include "touch.h"

/* Copy what the config says of files. Return: 0 or -ENOMEM. */
int uffdb_drop_init(struct uffdb_engine *engine);
void uffdb_drop_release(struct uffdb_engine *engine);

/*
 * A ballooned page was filled with zeros that cost memory, write-protected. What has no file that
 * we know of stays; private huge pages have none, and are zapped by the target (zapqueue.h).
 * @told: a violation was told of for the read
 */
void uffdb_lend(struct uffdb_engine *engine, uint64_t hva, uint64_t size, bool told);

/*
 * Is it a read of zeros that were dropped meanwhile, and that was told of? A thread that got no CPU
 * reads them only now, and one that reads them again would find them there on memory where zeros
 * cost nothing: it is no other violation, unless the page has left the balloon in between.
 */
bool uffdb_was_told(const struct uffdb_engine *engine, const struct uffdb_touch *touch);

/* Can it be punched out of a file that we have? */
bool uffdb_can_drop(const struct uffdb_engine *engine, uint64_t hva);

/* Punch it, whatever it holds. 0 or -errno. */
int uffdb_drop_block(const struct uffdb_engine *engine, const struct uffdb_range *block);

/*
 * Drop what is to go: ballooned pages that are still protected, so that nobody has written to them
 * through the mapping, and that hold zeros, so that no other process has.
 */
void uffdb_drop_lent(struct uffdb_engine *engine);

#endif
