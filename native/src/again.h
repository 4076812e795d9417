/* SPDX-License-Identifier: GPL-2.0-or-later */
/* again.c, for the controlling side: what was given up, is there, and is not used. */
#ifndef UFFDB_AGAIN_H
#define UFFDB_AGAIN_H

#include "engine.h"

enum uffdb_contents {
	UFFDB_ALL_ZEROS,
	UFFDB_WRITTEN_TO,     /* or it cannot be told */
	UFFDB_NOT_TO_BE_READ, /* it is absent, in a window */
};
enum uffdb_contents uffdb_contents(const struct uffdb_engine *engine, uint64_t hva, uint64_t len);

#endif
