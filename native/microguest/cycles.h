/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_CYCLES_H
#define MICROGUEST_CYCLES_H

#include "memory.h"

/* Add to the answer how many touches there were, and their cycles. */
void cycles_answer(const struct memory_touch *touch);

#endif
