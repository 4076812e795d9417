/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which 2 MiB blocks are to be registered, when there may be only so many windows.
 *
 * Pure: what it decides is carried out by callbacks. A unit is one block; it is
 * needed while it holds a ballooned page. The plan is the set of armed units: all
 * that are needed, and gaps between them that were absorbed to stay within the
 * budget. A window is a maximal run of armed units.
 */
#ifndef UFFDB_PLANNER_H
#define UFFDB_PLANNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct uffdb_planner_ops {
	/* (Un)register units [first, last). -ENOMEM from arm: there is no room for a window. */
	int (*arm)(void *of, uint64_t first, uint64_t last);
	int (*disarm)(void *of, uint64_t first, uint64_t last);
	/* Is no page of these units absent? Then trapping them costs nothing. May be NULL. */
	bool (*populated)(void *of, uint64_t first, uint64_t last);
	void *of;
};

struct uffdb_planner;

/**
 * uffdb_planner_create - make a plan in which nothing is needed.
 * @budget: windows at most; 0: no limit
 */
int uffdb_planner_create(uint64_t units, uint64_t budget, const struct uffdb_planner_ops *ops,
			 struct uffdb_planner **out);
void uffdb_planner_destroy(struct uffdb_planner *planner);

/** uffdb_planner_barrier - let no window reach over a unit. At most 1024, in rising order. */
int uffdb_planner_barrier(struct uffdb_planner *planner, uint64_t unit);

/**
 * uffdb_planner_need - units hold ballooned pages now: arm them.
 *
 * Return: 0; -ENOMEM when not even absorbing every gap makes room, or what arm
 *         said: then those of them that were not needed before are not armed.
 */
int uffdb_planner_need(struct uffdb_planner *planner, uint64_t first, uint64_t last);

/**
 * uffdb_planner_release - units hold none any more.
 *
 * They are let go, with what was absorbed beside them, unless that would make a
 * window more than the budget has.
 */
int uffdb_planner_release(struct uffdb_planner *planner, uint64_t first, uint64_t last);

/** uffdb_planner_mark - call a unit needed without arming it; uffdb_planner_replan() follows. */
void uffdb_planner_mark(struct uffdb_planner *planner, uint64_t unit);

/** uffdb_planner_replan - choose anew which gaps to absorb, and carry out the difference. */
int uffdb_planner_replan(struct uffdb_planner *planner);

/** uffdb_planner_could_improve - are gaps absorbed that the budget has room to open? */
bool uffdb_planner_could_improve(const struct uffdb_planner *planner);

bool uffdb_planner_is_armed(const struct uffdb_planner *planner, uint64_t unit);
uint64_t uffdb_planner_windows(const struct uffdb_planner *planner);
uint64_t uffdb_planner_armed(const struct uffdb_planner *planner); /* units */
uint64_t uffdb_planner_needed(const struct uffdb_planner *planner);
size_t uffdb_planner_memory(const struct uffdb_planner *planner); /* bytes */

#endif
