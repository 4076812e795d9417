/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is gone since the last picture of the target's memory. */
#ifndef UFFDB_SCAN_H
#define UFFDB_SCAN_H

#include "engine.h"

/* With @control held, as uffdb_engine_scan(). */
int64_t uffdb_scan(struct uffdb_engine *engine);

#endif
