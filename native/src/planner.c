// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "planner.h"
#include "uffdballoon.h"

#define LENGTHS	     4096 /* gaps are counted by length up to here, longer ones together */
#define ASKED_LENGTH 512  /* whether a longer gap is populated takes too long to find out */
#define ASKED	     128  /* and so do more of them, at one change */
#define ASKED_ANEW   4096 /* when all is planned anew */
#define BARRIERS     1024

struct gap {
	uint64_t first, last;
};

struct uffdb_planner {
	struct uffdb_planner_ops ops;
	uint64_t units;
	uint64_t budget;
	uint64_t working; /* the budget, or less once the kernel had no room */
	uint64_t windows, nr_armed, nr_needed;
	size_t words;
	_Atomic uint64_t *needed, *armed;
	size_t nr_barriers;
	uint64_t barriers[BARRIERS];
	uint32_t lengths[LENGTHS];
	struct gap asked[ASKED_ANEW];
};

/* ---- bitmaps ---- */

/* Which units of word @word are not absorbed, of [first, last)? Absorbed: armed, not needed. */
static uint64_t not_absorbed(const struct uffdb_planner *planner, uint64_t word, uint64_t first,
			     uint64_t last)
{
	uint64_t absorbed = uffdb_word(planner->armed, word) & ~uffdb_word(planner->needed, word);

	return ~absorbed & uffdb_word_mask(word, first, last);
}

/* Where the run of absorbed units that ends before @at begins. */
static uint64_t absorbed_before(const struct uffdb_planner *planner, uint64_t at)
{
	while (at > 0) {
		uint64_t word = (at - 1) / UFFDB_WORD_BITS;
		uint64_t other = not_absorbed(planner, word, word * UFFDB_WORD_BITS, at);

		if (other)
			return uffdb_highest_bit(word, other) + 1;
		at = word * UFFDB_WORD_BITS;
	}
	return 0;
}

/* Where the run of absorbed units that begins at @at ends. */
static uint64_t absorbed_after(const struct uffdb_planner *planner, uint64_t at)
{
	while (at < planner->units) {
		uint64_t word = at / UFFDB_WORD_BITS;
		uint64_t other = not_absorbed(planner, word, at, planner->units);

		if (other)
			return uffdb_lowest_bit(word, other);
		at = (word + 1) * UFFDB_WORD_BITS;
	}
	return planner->units;
}

/* ---- life ---- */

int uffdb_planner_create(uint64_t units, uint64_t budget, const struct uffdb_planner_ops *ops,
			 struct uffdb_planner **out)
{
	struct uffdb_planner *planner = calloc(1, sizeof(*planner));

	if (!planner)
		return -ENOMEM;
	planner->ops = *ops;
	planner->units = units;
	planner->budget = planner->working = budget ? budget : UINT64_MAX;
	planner->words = (size_t)(units / UFFDB_WORD_BITS + 1);
	planner->needed = calloc(planner->words, sizeof(uint64_t));
	planner->armed = calloc(planner->words, sizeof(uint64_t));
	if (!planner->needed || !planner->armed) {
		uffdb_planner_destroy(planner);
		return -ENOMEM;
	}
	*out = planner;
	return 0;
}

void uffdb_planner_destroy(struct uffdb_planner *planner)
{
	if (!planner)
		return;
	free((void *)planner->needed);
	free((void *)planner->armed);
	free(planner);
}

int uffdb_planner_barrier(struct uffdb_planner *planner, uint64_t unit)
{
	if (planner->nr_barriers == BARRIERS)
		return -E2BIG;
	planner->barriers[planner->nr_barriers++] = unit;
	return 0;
}

/* ---- changes of what is armed ---- */

static bool armed_before(const struct uffdb_planner *planner, uint64_t unit)
{
	return unit && uffdb_bit(planner->armed, unit - 1);
}

static bool armed_at(const struct uffdb_planner *planner, uint64_t unit)
{
	return unit < planner->units && uffdb_bit(planner->armed, unit);
}

/* Arm units none of which is armed. */
static int arm(struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	int error = planner->ops.arm(planner->ops.of, first, last);

	if (error)
		return error;
	planner->windows +=
		1 - (uint64_t)armed_before(planner, first) - (uint64_t)armed_at(planner, last);
	planner->nr_armed += uffdb_write_bits(planner->armed, first, last, true);
	return 0;
}

/* Disarm units all of which are armed. */
static int disarm(struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	int error = planner->ops.disarm(planner->ops.of, first, last);

	if (error)
		return error;
	planner->nr_armed -= uffdb_write_bits(planner->armed, first, last, false);
	planner->windows -=
		1 - (uint64_t)armed_before(planner, first) - (uint64_t)armed_at(planner, last);
	return 0;
}

/* ---- gaps ---- */

/* Walks the gaps of a bitmap over which a window may reach. */
struct gaps {
	const struct uffdb_planner *planner;
	const _Atomic uint64_t *map;
	uint64_t at; /* inside or behind a run */
	size_t barrier;
};

static struct gaps gaps_of(const struct uffdb_planner *planner, const _Atomic uint64_t *map)
{
	return (struct gaps){
		.planner = planner, .map = map, .at = uffdb_seek_bit(map, 0, planner->units, true)};
}

static bool next_gap(struct gaps *gaps, struct gap *gap)
{
	const struct uffdb_planner *planner = gaps->planner;

	for (;;) {
		gap->first = uffdb_seek_bit(gaps->map, gaps->at, planner->units, false);
		gap->last = uffdb_seek_bit(gaps->map, gap->first, planner->units, true);
		if (gap->last == planner->units)
			return false;
		gaps->at = gap->last;
		while (gaps->barrier < planner->nr_barriers &&
		       planner->barriers[gaps->barrier] < gap->first)
			gaps->barrier++;
		if (gaps->barrier == planner->nr_barriers ||
		    planner->barriers[gaps->barrier] >= gap->last)
			return true;
	}
}

static uint64_t length_of(const struct gap *gap)
{
	uint64_t length = gap->last - gap->first;

	return length < LENGTHS ? length : LENGTHS - 1;
}

/* The choice of the shortest gaps: all below a length, and the first so many of that length. */
struct choice {
	uint64_t length;
	uint64_t of_that_length;
};

static uint64_t count_gaps(struct uffdb_planner *planner, const _Atomic uint64_t *map)
{
	struct gaps gaps = gaps_of(planner, map);
	uint64_t total = 0;
	struct gap gap;

	memset(planner->lengths, 0, sizeof(planner->lengths));
	for (; next_gap(&gaps, &gap); total++)
		planner->lengths[length_of(&gap)]++;
	return total;
}

/* After count_gaps(): choose the @count shortest. */
static struct choice choose(const struct uffdb_planner *planner, uint64_t count)
{
	struct choice choice = {0, 0};

	while (choice.length < LENGTHS - 1 && planner->lengths[choice.length] < count)
		count -= planner->lengths[choice.length++];
	choice.of_that_length = count;
	return choice;
}

static bool is_chosen(struct choice *choice, const struct gap *gap)
{
	uint64_t length = length_of(gap);

	if (length != choice->length)
		return length < choice->length;
	if (!choice->of_that_length)
		return false;
	choice->of_that_length--;
	return true;
}

static bool is_populated(const struct uffdb_planner *planner, const struct gap *gap)
{
	return planner->ops.populated && gap->last - gap->first <= ASKED_LENGTH &&
	       planner->ops.populated(planner->ops.of, gap->first, gap->last);
}

static int by_length(const void *a, const void *b)
{
	const struct gap *left = a, *right = b;
	uint64_t left_length = left->last - left->first, right_length = right->last - right->first;

	return left_length < right_length ? -1 : left_length > right_length;
}

/*
 * Find the populated ones among the @most shortest gaps of @map, the shortest
 * first, in planner->asked; return their number.
 */
static uint64_t find_populated(struct uffdb_planner *planner, const _Atomic uint64_t *map,
			       uint64_t most)
{
	struct gaps gaps = gaps_of(planner, map);
	struct choice choice;
	uint64_t found = 0;
	struct gap gap;

	if (!planner->ops.populated)
		return 0;
	count_gaps(planner, map);
	choice = choose(planner, most);
	while (most && next_gap(&gaps, &gap)) {
		if (!is_chosen(&choice, &gap))
			continue;
		most--;
		if (is_populated(planner, &gap))
			planner->asked[found++] = gap;
	}
	qsort(planner->asked, found, sizeof(*planner->asked), by_length);
	return found;
}

/*
 * Make @count windows fewer: absorb gaps, populated ones first, of each kind the
 * shortest. Whether it is populated is asked of the shortest only.
 *
 * Return: how many there are fewer, or -errno.
 */
static int64_t absorb(struct uffdb_planner *planner, uint64_t count)
{
	uint64_t populated = find_populated(planner, planner->armed, ASKED), absorbed = 0;
	struct choice choice;
	struct gaps gaps;
	struct gap gap;
	int error;

	for (; absorbed < count && absorbed < populated; absorbed++) {
		error = arm(planner, planner->asked[absorbed].first, planner->asked[absorbed].last);
		if (error)
			return error;
	}
	count_gaps(planner, planner->armed);
	choice = choose(planner, count - absorbed);
	gaps = gaps_of(planner, planner->armed);
	while (absorbed < count && next_gap(&gaps, &gap)) {
		if (!is_chosen(&choice, &gap))
			continue;
		error = arm(planner, gap.first, gap.last);
		if (error)
			return error;
		absorbed++;
	}
	return (int64_t)absorbed;
}

/* Some more than needed, so that not every change has to look for the shortest gaps. */
static uint64_t slack(uint64_t windows)
{
	return windows / 128 + 1;
}

/* ---- incremental changes ---- */

/* Make room for one more window; false when there is none to be made. */
static bool make_room(struct uffdb_planner *planner)
{
	return absorb(planner, slack(planner->windows)) > 0;
}

/* The kernel has no room: work with fewer windows than there are now. */
static bool retreat(struct uffdb_planner *planner)
{
	uint64_t fewer = planner->windows / 16 + 1;
	int64_t absorbed;

	absorbed = absorb(planner, fewer);
	if (planner->windows)
		planner->working = planner->windows;
	return absorbed > 0;
}

/* The last armed unit before @at, or @units where there is none. */
static uint64_t last_armed_before(const struct uffdb_planner *planner, uint64_t at)
{
	while (at > 0) {
		uint64_t word = (at - 1) / UFFDB_WORD_BITS;
		uint64_t bits = uffdb_word(planner->armed, word) &
				uffdb_word_mask(word, word * UFFDB_WORD_BITS, at);

		if (bits)
			return uffdb_highest_bit(word, bits);
		at = word * UFFDB_WORD_BITS;
	}
	return planner->units;
}

static bool has_barrier(const struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	for (size_t i = 0; i < planner->nr_barriers; i++)
		if (planner->barriers[i] >= first && planner->barriers[i] < last)
			return true;
	return false;
}

/* Arm units along with the gap to their nearest window, which then is the same window. */
static int arm_with_gap(struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	uint64_t left = last_armed_before(planner, first);
	uint64_t right = uffdb_seek_bit(planner->armed, last, planner->units, true);
	bool has_left = left < planner->units && !has_barrier(planner, left, first);
	bool has_right = right < planner->units && !has_barrier(planner, last, right);

	if (has_left && (!has_right || first - left <= right - last))
		return arm(planner, left + 1, last);
	return has_right ? arm(planner, first, right) : -ENOMEM;
}

static int arm_run(struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	for (;;) {
		bool alone = !armed_before(planner, first) && !armed_at(planner, last);
		bool fits = !alone || planner->windows < planner->working;
		int error;

		/* A gap that was absorbed may have been the one around us. */
		if (uffdb_bit(planner->armed, first))
			return 0;
		if (!fits && make_room(planner))
			continue;
		if (!fits && !arm_with_gap(planner, first, last))
			return 0;
		error = arm(planner, first, last);
		if (error != -ENOMEM)
			return error;
		if (!retreat(planner))
			return arm_with_gap(planner, first, last);
	}
}

/* Take back what was armed for a need that could not be met in full. */
static void take_back(struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	for (uint64_t at = first; at < last;) {
		uint64_t begin = uffdb_seek_bit(planner->armed, at, last, true), end;

		end = uffdb_seek_bit(planner->armed, begin, last, false);
		if (begin < end)
			disarm(planner, begin, end);
		at = end;
	}
}

int uffdb_planner_need(struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	uint64_t at = first;

	while (at < last) {
		uint64_t begin = uffdb_seek_bit(planner->armed, at, last, false);
		uint64_t end = uffdb_seek_bit(planner->armed, begin, last, true);
		int error = begin < end ? arm_run(planner, begin, end) : 0;

		if (error) {
			/* Those that were needed before are armed, and stay so. */
			for (uint64_t unit = first; unit < last; unit++)
				if (!uffdb_bit(planner->needed, unit))
					take_back(planner, unit, unit + 1);
			return error;
		}
		at = end;
	}
	planner->nr_needed += uffdb_write_bits(planner->needed, first, last, true);
	return 0;
}

/* Let go of an absorbed run, unless that makes a window too many. */
static int let_go(struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	bool splits = armed_before(planner, first) && armed_at(planner, last);
	int error;

	if (splits && planner->windows >= planner->working)
		return 0;
	error = disarm(planner, first, last);
	if (!splits || error != -ENOMEM)
		return error;
	/* Two windows of one take room as well: it stays absorbed. */
	planner->working = planner->windows;
	return 0;
}

int uffdb_planner_release(struct uffdb_planner *planner, uint64_t first, uint64_t last)
{
	planner->nr_needed -= uffdb_write_bits(planner->needed, first, last, false);
	for (uint64_t at = first; at < last;) {
		uint64_t begin = uffdb_seek_bit(planner->armed, at, last, true), end;
		int error;

		if (begin == last)
			break;
		end = absorbed_after(planner, begin);
		begin = absorbed_before(planner, begin + 1);
		error = let_go(planner, begin, end);
		if (error)
			return error;
		at = end > at ? end : at + 1;
	}
	return 0;
}

/* ---- from scratch ---- */

void uffdb_planner_mark(struct uffdb_planner *planner, uint64_t unit)
{
	planner->nr_needed += uffdb_write_bits(planner->needed, unit, unit + 1, true);
}

static uint64_t count_runs(const struct uffdb_planner *planner, const _Atomic uint64_t *map)
{
	uint64_t runs = 0, carry = 0;

	for (size_t word = 0; word < planner->words; word++) {
		runs += (uint64_t)__builtin_popcountll(map[word] & ~(map[word] << 1 | carry));
		carry = map[word] >> 63;
	}
	return runs;
}

/* Choose which units to arm: the needed ones, and gaps until the budget holds. */
static void plan(struct uffdb_planner *planner, _Atomic uint64_t *wanted)
{
	uint64_t runs = count_runs(planner, planner->needed), excess, populated;
	struct choice choice;
	struct gaps gaps;
	struct gap gap;

	memcpy((void *)wanted, (const void *)planner->needed, planner->words * sizeof(*wanted));
	if (runs <= planner->working)
		return;
	excess = runs - planner->working;
	populated = find_populated(planner, wanted, ASKED_ANEW);
	for (uint64_t i = 0; i < populated && excess; i++, excess--)
		uffdb_write_bits(wanted, planner->asked[i].first, planner->asked[i].last, true);
	count_gaps(planner, wanted);
	choice = choose(planner, excess);
	gaps = gaps_of(planner, wanted);
	while (excess && next_gap(&gaps, &gap)) {
		if (!is_chosen(&choice, &gap))
			continue;
		uffdb_write_bits(wanted, gap.first, gap.last, true);
		excess--;
	}
}

typedef int change_run(struct uffdb_planner *planner, uint64_t first, uint64_t last);

/* Change every run of units that are in @in and not in @out. */
static int change_runs(struct uffdb_planner *planner, const _Atomic uint64_t *in,
		       const _Atomic uint64_t *out, change_run *change)
{
	uint64_t begin = 0, end = 0;

	for (;;) {
		int error;

		/* The run of @in, cut where @out begins. */
		begin = uffdb_seek_bit(in, end, planner->units, true);
		if (begin == planner->units)
			return 0;
		if (uffdb_bit(out, begin)) {
			end = uffdb_seek_bit(out, begin, planner->units, false);
			continue;
		}
		end = uffdb_seek_bit(in, begin, planner->units, false);
		end = uffdb_seek_bit(out, begin, end, true);
		error = change(planner, begin, end);
		if (error)
			return error;
	}
}

int uffdb_planner_replan(struct uffdb_planner *planner)
{
	_Atomic uint64_t *wanted = malloc(planner->words * sizeof(*wanted)), *before;
	int error;

	if (!wanted)
		return -ENOMEM;
	before = malloc(planner->words * sizeof(*before));
	if (!before) {
		free((void *)wanted);
		return -ENOMEM;
	}
	/* What the kernel had no room for once, it may have room for now. */
	if (planner->working < planner->budget / 2)
		planner->working *= 2;
	else
		planner->working = planner->budget;
	plan(planner, wanted);
	/* First the gaps to absorb, which makes windows fewer, and then those to open. */
	memcpy((void *)before, (const void *)planner->armed, planner->words * sizeof(*before));
	error = change_runs(planner, wanted, before, arm);
	if (!error)
		error = change_runs(planner, before, wanted, let_go);
	free((void *)wanted);
	free((void *)before);
	return error;
}

bool uffdb_planner_could_improve(const struct uffdb_planner *planner)
{
	return planner->nr_armed > planner->nr_needed &&
	       planner->windows + slack(planner->working) * 16 < planner->working;
}

bool uffdb_planner_is_armed(const struct uffdb_planner *planner, uint64_t unit)
{
	return uffdb_bit(planner->armed, unit);
}

uint64_t uffdb_planner_windows(const struct uffdb_planner *planner)
{
	return planner->windows;
}

uint64_t uffdb_planner_armed(const struct uffdb_planner *planner)
{
	return planner->nr_armed;
}

uint64_t uffdb_planner_needed(const struct uffdb_planner *planner)
{
	return planner->nr_needed;
}

size_t uffdb_planner_memory(const struct uffdb_planner *planner)
{
	return sizeof(*planner) + 2 * planner->words * sizeof(uint64_t);
}
