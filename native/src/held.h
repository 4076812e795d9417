/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How those that are held go on. */
#ifndef UFFDB_HELD_H
#define UFFDB_HELD_H

#include "engine.h"

/* The loop's: let those go on whose time has come. */
void uffdb_held_expire(struct uffdb_engine *engine);

#endif
