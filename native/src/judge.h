/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a touch means, and what follows from that. */
#ifndef UFFDB_JUDGE_H
#define UFFDB_JUDGE_H

#include "engine.h"

/* Judge a touch that was read, and see to it. */
void uffdb_judge(struct uffdb_engine *engine, struct uffdb_touch *touch);

/*
 * Judge what was held under other terms, and was taken out. True when it is a violation still, as
 * which it was counted; else it is seen to.
 */
bool uffdb_judge_held(struct uffdb_engine *engine, struct uffdb_held *held);

/* Judge a write that was made before its page was trapped. */
void uffdb_judge_late(struct uffdb_engine *engine, uint64_t hva, uint64_t size);

#endif
