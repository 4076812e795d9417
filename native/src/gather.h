/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Giving back huge pages whose pieces are all in the driver's balloon. The controlling side's. */
#ifndef UFFDB_GATHER_H
#define UFFDB_GATHER_H

#include "engine.h"

/* Punch what waits for it and has its window. Return: is there more that will have to wait? */
bool uffdb_gather(struct uffdb_engine *engine);

#endif
