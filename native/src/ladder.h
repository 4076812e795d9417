/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The policy ladder: the first rung that can answer a violation does.
 *
 * Pure but for the throttle's bucket: it decides, and settle.c does. What could not be done is
 * asked for again, from the next rung on.
 */
#ifndef UFFDB_LADDER_H
#define UFFDB_LADDER_H

#include "touch.h"

enum uffdb_outcome {
	UFFDB_OUTCOME_GRANT,
	UFFDB_OUTCOME_ZERO_READ,
	UFFDB_OUTCOME_HOLD,
	UFFDB_OUTCOME_POISON, /* the page is absent */
	UFFDB_OUTCOME_KILL,
};

struct uffdb_decision {
	enum uffdb_outcome outcome;
	uint8_t action;	      /* enum uffdb_action: what is told of it, and what holds */
	uint32_t rung;	      /* that decided; the number of rungs when none did */
	uint64_t deadline_ns; /* of a hold; 0: none */
};

struct uffdb_ladder {
	uint32_t nr_rungs;
	struct uffdb_rung rungs[UFFDB_MAX_RUNGS];
	uint64_t tokens, tokens_ns; /* of the throttle: bytes, and when they were counted */
};

/* Does a rung stop a vCPU for good, or end the guest? */
bool uffdb_ladder_harms(const struct uffdb_ladder *ladder);

/* Return: 0; -EINVAL for too many rungs, or a throttle without a rate. */
int uffdb_ladder_init(struct uffdb_ladder *ladder, const struct uffdb_rung *rungs, uint32_t nr);

/* Decide on a violation, beginning with rung number @rung; takes the throttle's tokens for it. */
struct uffdb_decision uffdb_ladder_decide(struct uffdb_ladder *ladder,
					  const struct uffdb_touch *touch, uint32_t rung,
					  uint64_t now_ns);

#endif
