/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The thread of the fault loop. For the controlling side. */
#ifndef UFFDB_LOOP_H
#define UFFDB_LOOP_H

#include "engine.h"

/* Return: 0 or -errno; then there is no thread, unless @running says that one is to be stopped. */
int uffdb_loop_start(struct uffdb_engine *engine);
void uffdb_loop_stop(struct uffdb_engine *engine);

#endif
