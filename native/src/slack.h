/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Windows that trap nothing for a while, because all that is in them would be granted. */
#ifndef UFFDB_SLACK_H
#define UFFDB_SLACK_H

#include "engine.h"

static inline bool uffdb_has_slack(const struct uffdb_engine *engine)
{
	return uffdb_windows_slack_bytes(engine->windows);
}

/* Of this engine, may windows be slack at all? */
bool uffdb_can_slacken(const struct uffdb_engine *engine);

/* The loop's: may those of a RAM block be, by the contract as it is? */
bool uffdb_slack_is_for(const struct uffdb_engine *engine, const struct uffdb_block *block);

/* What is in the balloon even if all that is slack was taken, in bytes. Any thread. */
uint64_t uffdb_slack_certain(const struct uffdb_engine *engine);

/*
 * The loop's: before a touch is judged, find out what was taken, if it matters to the touch.
 * Return: false when that has to wait for the controlling side.
 */
bool uffdb_slack_make_room(struct uffdb_engine *engine, const struct uffdb_touch *touch);

/* The loop's: answer a touch that is granted by slackening around it. False: it cannot be. */
bool uffdb_slack_grant(struct uffdb_engine *engine, const struct uffdb_touch *touch);

/* The controlling side's, as those below: have all trap again, and know what was taken. */
int uffdb_slack_tighten(struct uffdb_engine *engine);

/* The same, where something was given up again, or must be looked at page by page. */
int uffdb_slack_tighten_for_gifts(struct uffdb_engine *engine);

/* Look at what was taken; once it is quiet, or the floor comes near, have all trap again. */
void uffdb_slack_keep_up(struct uffdb_engine *engine, bool look);

#endif
