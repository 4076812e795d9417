/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which 2 MiB blocks are registered. Used by the controlling thread only, unless said. */
#ifndef UFFDB_WINDOWS_H
#define UFFDB_WINDOWS_H

#include "uffdballoon.h"

struct uffdb_windows;
struct uffdb_windows_config {
	const struct uffdb_ledger *ledger;
	int uffd;
	int pagemap_fd; /* or -1 */
	uint32_t modes, shared_modes, hugetlb_modes;
	uint64_t budget;
	uint64_t huge_mappings; /* mappings of huge pages that there may ever be; 0: any number */
	bool keep;		/* no window goes before the end */
	/* Any thread: there is something to arm, or to let go. Not before that was seen to again.
	 */
	void (*wake)(void *argument);
	void *wake_argument;
};

int uffdb_windows_create(const struct uffdb_windows_config *config, struct uffdb_windows **out);
void uffdb_windows_destroy(struct uffdb_windows *windows);
int uffdb_windows_arm(struct uffdb_windows *windows, uint64_t hva, uint64_t len);
int uffdb_windows_trim(struct uffdb_windows *windows, uint64_t hva, uint64_t len);
/* Lift the protection of what stays registered; the rest was lifted with its registration. */
int uffdb_windows_unprotect(struct uffdb_windows *windows, uint64_t hva, uint64_t len);
/* Unregister what is not armed, whoever registered it. */
int uffdb_windows_drop_unknown(struct uffdb_windows *windows, const struct uffdb_block *block);
/* Some pages of a block are not ballooned any more: the one of these that any thread may call. */
void uffdb_windows_note_change(struct uffdb_windows *windows, uint64_t hva);
/* The same of all that is armed. */
void uffdb_windows_note_all(struct uffdb_windows *windows);
/* Is there something for uffdb_windows_tidy()? */
bool uffdb_windows_changed(const struct uffdb_windows *windows);
int uffdb_windows_tidy(struct uffdb_windows *windows);
/* A page was given up, and is in the ledger: any thread. */
void uffdb_windows_note_inflate(struct uffdb_windows *windows, uint64_t hva, uint64_t time_ns);
/* The caller sees to what is fresh or changed right after: nobody has to be woken for it. */
void uffdb_windows_expect(struct uffdb_windows *windows, bool expected);
/* Arm what needs it. Return: blocks; @since_ns: when the first of them was given up; or -errno. */
int uffdb_windows_arm_fresh(struct uffdb_windows *windows, uint64_t *since_ns);
/* Call @look for the blocks that were armed so, once; @looked: were there any? */
typedef int uffdb_look_fn(void *argument, const struct uffdb_range *range);
int uffdb_windows_look(struct uffdb_windows *windows, uffdb_look_fn *look, void *argument,
		       bool *looked);
void uffdb_windows_look_everywhere(struct uffdb_windows *windows);
/* From now on, look at blocks whose pages were given up while they were armed, too. */
void uffdb_windows_look_at_armed(struct uffdb_windows *windows);
/* Unregister all of them, and go on planning: somebody else needs the memory's registration. */
int uffdb_windows_lift(struct uffdb_windows *windows);
/* Register what is planned. -EBUSY: somebody else's registration is still there; all are lifted. */
int uffdb_windows_restore(struct uffdb_windows *windows);
/*
 * Have the windows around @hva trap nothing, up to @most_bytes of them: whole blocks, all of which
 * is in the balloon and absent. Return: bytes, of @run; 0: none.
 */
uint64_t uffdb_windows_slacken(struct uffdb_windows *windows, uint64_t hva, uint64_t most_bytes,
			       struct uffdb_range *run);
/* The first such run from unit @at on, which is moved behind it; false: none. */
bool uffdb_windows_next_slack(const struct uffdb_windows *windows, uint64_t *at,
			      struct uffdb_range *run);
/* Have a run trap again. It counts as slack until what was taken of it is known. */
int uffdb_windows_trap_slack(struct uffdb_windows *windows, const struct uffdb_range *run);
void uffdb_windows_end_slack(struct uffdb_windows *windows, const struct uffdb_range *run);
/* Have a block looked at once more by uffdb_windows_look(). */
void uffdb_windows_look_again_at(struct uffdb_windows *windows, uint64_t hva);
/* Any thread. Bytes are whole blocks: never less than what can be taken unseen. */
bool uffdb_windows_is_slack(const struct uffdb_windows *windows, uint64_t hva);
uint64_t uffdb_windows_slack_bytes(const struct uffdb_windows *windows);
/* Does a window cover @hva? Any thread. */
bool uffdb_windows_is_armed(const struct uffdb_windows *windows, uint64_t hva);
uint64_t uffdb_windows_count(const struct uffdb_windows *windows);
uint64_t uffdb_windows_bytes(const struct uffdb_windows *windows);

#endif
