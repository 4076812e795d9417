/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest was reset: its balloon is empty. The loop's side of it. */
#ifndef UFFDB_RESET_H
#define UFFDB_RESET_H

#include "engine.h"

/*
 * Has the monitor told of a reset meanwhile? Then all is another picture now. Needs a relay. Waits
 * for a monitor that tells late, since @read_ns, where the ladder may harm whoever touched.
 */
bool uffdb_was_reset(struct uffdb_engine *engine, uint64_t read_ns);

/* A reset at @at_ns, or 0, as the monitor's client tells of it, later: once is enough. */
void uffdb_hear_of_reset(struct uffdb_engine *engine, uint64_t at_ns);

/* As uffdb_was_reset(), of what the monitor has told by now. Needs a relay. */
void uffdb_hear_of_late_reset(struct uffdb_engine *engine);

/* Empty the balloon if a reset was heard of that had no effect yet, by whomever. */
void uffdb_hear_of_kept_reset(struct uffdb_engine *engine);

#endif
