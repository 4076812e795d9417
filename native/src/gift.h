/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A block of 2 MiB that was given up whole is granted as that block. The fault loop's. */
#ifndef UFFDB_GIFT_H
#define UFFDB_GIFT_H

#include "engine.h"

/*
 * Take back the whole block that a touched page was given up with, if it is still all there and
 * the contract allows that much. @judged: what the touch was judged by. Return: has the touch been
 * seen to?
 */
bool uffdb_grant_as_given(struct uffdb_engine *engine, const struct uffdb_touch *touch,
			  const struct uffdb_judged *judged);

#endif
