/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The thread that follows the guest's balloon. */
#ifndef UFFDB_FOLLOWER_H
#define UFFDB_FOLLOWER_H

#include "engine.h"

int uffdb_follower_create(struct uffdb_engine *engine);
void uffdb_follower_destroy(struct uffdb_engine *engine);
int uffdb_follower_start(struct uffdb_engine *engine);
void uffdb_follower_stop(struct uffdb_engine *engine);
/* Any thread. */
void uffdb_follower_wake(struct uffdb_engine *engine);

#endif
