/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When the host has no page to give. */
#ifndef UFFDB_SCARCE_H
#define UFFDB_SCARCE_H

#include "engine.h"

/* Hold a touch that the host has no memory for, and tell of it. It is tried again: held.c. */
void uffdb_hold_for_memory(struct uffdb_engine *engine, const struct uffdb_touch *touch,
			   enum uffdb_lacking lacking);

#endif
