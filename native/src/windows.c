// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The windows of the target: what the planner decides, done by userfaultfd. A
 * window is a run of registered 2 MiB blocks; the kernel merges the VMAs of
 * neighbours, but for those of huge pages.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "ledger.h"
#include "pagemap.h"
#include "pages.h"
#include "planner.h"
#include "uffdballoon.h"
#include "windows.h"

#define TRIES 64

/*
 * A RAM block, and the planner's units that it is: 2 MiB blocks of the address space, or larger
 * ones of huge pages (see unit_of_huge_pages()).
 */
struct extent {
	const struct uffdb_block *block;
	uint32_t modes;
	uint64_t unit_bytes;
	uint64_t first_huge; /* number of the first such block that it reaches */
	uint64_t first_unit;
	uint64_t count;
};

struct uffdb_windows {
	const struct uffdb_ledger *ledger;
	int uffd;
	int pagemap_fd;
	struct uffdb_planner *planner;
	size_t nr;
	struct extent *extents;
	_Atomic uint8_t *changed; /* by unit: lost a ballooned page to a grant */
	_Atomic uint8_t *fresh;	  /* got one, and is to be armed or looked at */
	_Atomic uint8_t *armed;
	_Atomic uint8_t *slack; /* has its window, which traps nothing: slack.c */
	uint8_t *unlooked;	/* armed after its pages were given up, and not looked at since */
	_Atomic bool any_changed, any_fresh;
	bool any_unlooked;
	_Atomic bool look_at_armed; /* what is given up in a window is looked at as well */
	bool keep;		    /* what is armed once, until the end */
	bool lifted;		    /* nothing is registered; what is armed is the plan alone */
	void (*wake)(void *argument);
	_Atomic bool expected; /* somebody is about to see to what is fresh or changed */
	void *wake_argument;
	_Atomic uint64_t fresh_since_ns;
	_Atomic uint64_t windows, bytes; /* as of the last change, for any thread */
	_Atomic uint64_t slack_bytes;	 /* in whole units */
};

static struct extent *extent_at(const struct uffdb_windows *windows, uint64_t hva)
{
	const struct uffdb_block *block = uffdb_ledger_block(windows->ledger, hva);

	for (size_t i = 0; block && i < windows->nr; i++)
		if (windows->extents[i].block == block)
			return &windows->extents[i];
	return NULL;
}

static struct extent *extent_of_unit(const struct uffdb_windows *windows, uint64_t unit)
{
	size_t i = windows->nr - 1;

	while (i && windows->extents[i].first_unit > unit)
		i--;
	return &windows->extents[i];
}

/* Addresses of units [first, last), clipped to their RAM block. */
static struct uffdb_range range_of_units(const struct extent *of, uint64_t first, uint64_t last)
{
	uint64_t start = (of->first_huge + first - of->first_unit) * of->unit_bytes;
	uint64_t end = (of->first_huge + last - of->first_unit) * of->unit_bytes;

	if (start < of->block->hva)
		start = of->block->hva;
	if (end > of->block->hva + of->block->size)
		end = of->block->hva + of->block->size;
	return (struct uffdb_range){start, end - start};
}

static uint64_t unit_at(const struct extent *of, uint64_t hva)
{
	return of->first_unit + hva / of->unit_bytes - of->first_huge;
}

/*
 * A huge page that was taken back and is still absent: where the pool has none, the
 * kernel's own fault path would end the target with SIGBUS. The fault loop lets it wait.
 */
static bool is_scarce(const struct uffdb_windows *windows, const struct extent *of,
		      const struct uffdb_range *unit)
{
	return of->block->flags & UFFDB_BLOCK_HUGETLB && windows->pagemap_fd >= 0 &&
	       !uffdb_is_populated(windows->pagemap_fd, unit->start, unit->start + unit->len);
}

/* Whatever is in it from here on is trapped, or left to the guest. */
static void end_slack(struct uffdb_windows *windows, const struct extent *of, uint64_t unit)
{
	if (!atomic_exchange(&windows->slack[unit], 0))
		return;
	atomic_fetch_sub(&windows->slack_bytes, range_of_units(of, unit, unit + 1).len);
}

static bool is_needed(const struct uffdb_windows *windows, const struct extent *of, uint64_t unit)
{
	struct uffdb_range range = range_of_units(of, unit, unit + 1), found;

	if (uffdb_ledger_next(windows->ledger, range.start, range.start + range.len, &found) > 0)
		return true;
	return windows->armed[unit] && is_scarce(windows, of, &range);
}

/* Somebody has to see to it who may be asleep. */
static void wake_whoever_tidies(struct uffdb_windows *windows)
{
	if (windows->wake && !atomic_load(&windows->expected))
		windows->wake(windows->wake_argument);
}

static void note_fresh(struct uffdb_windows *windows, uint64_t unit, uint64_t time_ns)
{
	atomic_store_explicit(&windows->fresh[unit], 1, memory_order_relaxed);
	if (!atomic_exchange(&windows->any_fresh, true)) {
		atomic_store_explicit(&windows->fresh_since_ns, time_ns, memory_order_relaxed);
		wake_whoever_tidies(windows);
	}
}

static int register_units(void *argument, uint64_t first, uint64_t last)
{
	struct uffdb_windows *windows = argument;
	const struct extent *of = extent_of_unit(windows, first);
	struct uffdb_range range = range_of_units(of, first, last);

	int error = windows->lifted
			    ? 0
			    : uffdb_uffd_register(windows->uffd, range.start, range.len, of->modes);

	if (error)
		return error;
	for (uint64_t unit = first; unit < last; unit++) {
		/* One that was kept is armed already. */
		if (!windows->armed[unit])
			windows->bytes += range_of_units(of, unit, unit + 1).len;
		windows->armed[unit] = 1;
	}
	return 0;
}

static int unregister_units(void *argument, uint64_t first, uint64_t last)
{
	struct uffdb_windows *windows = argument;
	const struct extent *of = extent_of_unit(windows, first);
	struct uffdb_range range = range_of_units(of, first, last);
	int error;

	if (windows->keep)
		return 0;
	/* Before anything else: what is given up from here on has to ask for a window. */
	for (uint64_t unit = first; unit < last; unit++)
		windows->armed[unit] = 0;
	error = windows->lifted ? 0 : uffdb_uffd_unregister(windows->uffd, range.start, range.len);

	/*
	 * A target that unmapped it, or is gone (ENOMEM, as without room for a VMA),
	 * has no window there either.
	 */
	if (error == -ESRCH || error == -EINVAL ||
	    (error == -ENOMEM && uffdb_is_gone(windows->pagemap_fd)))
		error = 0;
	if (!error)
		windows->bytes -= range.len;
	for (uint64_t unit = first; unit < last; unit++) {
		if (error) {
			windows->armed[unit] = 1;
			continue;
		}
		end_slack(windows, of, unit);
		if (is_needed(windows, of, unit))
			note_fresh(windows, unit, 0);
	}
	return error;
}

static bool are_populated(void *argument, uint64_t first, uint64_t last)
{
	struct uffdb_windows *windows = argument;
	struct uffdb_range range = range_of_units(extent_of_unit(windows, first), first, last);

	return windows->pagemap_fd >= 0 &&
	       uffdb_is_populated(windows->pagemap_fd, range.start, range.start + range.len);
}

static bool is_huge(const struct uffdb_block *block)
{
	return block->flags & UFFDB_BLOCK_HUGETLB;
}

static uint64_t units_of(const struct uffdb_block *block, uint64_t unit_bytes)
{
	return (block->hva + block->size - 1) / unit_bytes - block->hva / unit_bytes + 1;
}

/*
 * What a window has cut stays cut where pages are huge: such mappings are never merged again, for
 * hugetlbfs sets VM_DONTEXPAND, and what has it is VM_SPECIAL (mm/vma.c, mm/mmap.c before). So
 * their windows begin and end at few places, which depend on nothing but the RAM and the limit:
 * however often windows come and go, and whoever attaches after us, there are no more mappings than
 * units.
 */
static uint64_t unit_of_huge_pages(const struct uffdb_block *blocks, size_t nr, uint64_t limit)
{
	uint64_t unit_bytes = UFFDB_HUGE, units, largest = 0;

	for (size_t i = 0; i < nr; i++)
		if (is_huge(&blocks[i]) && blocks[i].size > largest)
			largest = blocks[i].size;
	for (; limit && unit_bytes < largest; unit_bytes *= 2) {
		units = 0;
		for (size_t i = 0; i < nr; i++)
			units += is_huge(&blocks[i]) ? units_of(&blocks[i], unit_bytes) : 0;
		if (units <= limit)
			break;
	}
	return unit_bytes;
}

/* Number the units of all RAM blocks, a barrier between each two of them. */
static uint64_t number_units(struct uffdb_windows *windows,
			     const struct uffdb_windows_config *config)
{
	const struct uffdb_block *blocks = uffdb_ledger_blocks(config->ledger, &windows->nr);
	uint64_t huge_unit = unit_of_huge_pages(blocks, windows->nr, config->huge_mappings);
	uint64_t units = 0;

	for (size_t i = 0; i < windows->nr; i++) {
		struct extent *of = &windows->extents[i];

		of->block = &blocks[i];
		of->unit_bytes = is_huge(&blocks[i]) ? huge_unit : UFFDB_HUGE;
		of->modes = is_huge(&blocks[i])			   ? config->hugetlb_modes
			    : blocks[i].flags & UFFDB_BLOCK_SHARED ? config->shared_modes
								   : config->modes;
		of->first_huge = blocks[i].hva / of->unit_bytes;
		of->first_unit = units;
		of->count = units_of(&blocks[i], of->unit_bytes);
		units += of->count + 1;
	}
	return units;
}

static int make_extents(struct uffdb_windows *windows, const struct uffdb_windows_config *config)
{
	const struct uffdb_planner_ops ops = {register_units, unregister_units, are_populated,
					      windows};
	uint64_t units;
	int error;

	uffdb_ledger_blocks(config->ledger, &windows->nr);
	windows->extents = calloc(windows->nr + 1, sizeof(*windows->extents));
	if (!windows->extents)
		return -ENOMEM;
	units = number_units(windows, config);
	windows->changed = calloc(units + 1, 1);
	windows->fresh = calloc(units + 1, 1);
	windows->armed = calloc(units + 1, 1);
	windows->unlooked = calloc(units + 1, 1);
	windows->slack = calloc(units + 1, 1);
	if (!windows->changed || !windows->fresh || !windows->armed || !windows->unlooked ||
	    !windows->slack)
		return -ENOMEM;
	error = uffdb_planner_create(units, config->budget, &ops, &windows->planner);
	for (size_t i = 0; !error && i < windows->nr; i++)
		error = uffdb_planner_barrier(windows->planner, windows->extents[i].first_unit +
									windows->extents[i].count);
	return error;
}

int uffdb_windows_create(const struct uffdb_windows_config *config, struct uffdb_windows **out)
{
	struct uffdb_windows *windows = calloc(1, sizeof(*windows));
	int error;

	if (!windows)
		return -ENOMEM;
	windows->ledger = config->ledger;
	windows->uffd = config->uffd;
	windows->pagemap_fd = config->pagemap_fd;
	windows->keep = config->keep;
	windows->wake = config->wake;
	windows->wake_argument = config->wake_argument;
	error = make_extents(windows, config);
	if (error) {
		uffdb_windows_destroy(windows);
		return error;
	}
	*out = windows;
	return 0;
}

void uffdb_windows_destroy(struct uffdb_windows *windows)
{
	if (!windows)
		return;
	uffdb_planner_destroy(windows->planner);
	free((void *)windows->slack);
	free(windows->unlooked);
	free((void *)windows->armed);
	free((void *)windows->fresh);
	free((void *)windows->changed);
	free(windows->extents);
	free(windows);
}

/* Let others see the counts; called after each change. */
static int show_counts(struct uffdb_windows *windows, int error)
{
	windows->windows = uffdb_planner_windows(windows->planner);
	return error;
}

int uffdb_windows_arm(struct uffdb_windows *windows, uint64_t hva, uint64_t len)
{
	struct extent *of = extent_at(windows, hva);

	if (!of || !len || len > of->block->hva + of->block->size - hva)
		return -ENOENT;
	return show_counts(windows, uffdb_planner_need(windows->planner, unit_at(of, hva),
						       unit_at(of, hva + len - 1) + 1));
}

/* Lifting a protection that nobody has asked for is refused where nothing is registered. */
static bool is_registered(const struct uffdb_windows *windows, const struct uffdb_range *range)
{
	return !uffdb_uffd_writeprotect(windows->uffd, range->start, range->len, false);
}

/* What whoever was before us kept for pages that are not in the ledger any more. */
static int take_scarce(struct uffdb_windows *windows, const struct extent *of)
{
	int error = 0;

	for (uint64_t unit = of->first_unit; !error && unit < of->first_unit + of->count; unit++) {
		struct uffdb_range range = range_of_units(of, unit, unit + 1);

		if (windows->armed[unit] || !is_scarce(windows, of, &range) ||
		    !is_registered(windows, &range))
			continue;
		error = uffdb_planner_need(windows->planner, unit, unit + 1);
		/* It goes once its page is there. */
		uffdb_windows_note_change(windows, range.start);
	}
	return error;
}

int uffdb_windows_drop_unknown(struct uffdb_windows *windows, const struct uffdb_block *block)
{
	struct extent *of = extent_at(windows, block->hva);
	uint64_t unit = of ? of->first_unit : 0, last = of ? unit + of->count : 0;
	int error = of ? show_counts(windows, take_scarce(windows, of)) : 0;

	while (!error && unit < last) {
		uint64_t end = unit;
		struct uffdb_range range;

		while (end < last && !windows->armed[end])
			end++;
		if (end > unit) {
			range = range_of_units(of, unit, end);
			error = uffdb_uffd_unregister(windows->uffd, range.start, range.len);
		}
		unit = end + 1;
	}
	return error;
}

/* Release the units of [first, last) that hold nothing, run by run. */
static int release_unneeded(struct uffdb_windows *windows, const struct extent *of, uint64_t first,
			    uint64_t last)
{
	int error = 0;

	while (!error && !windows->keep && first < last) {
		uint64_t end = first;

		while (end < last && !is_needed(windows, of, end))
			end++;
		if (end > first)
			error = uffdb_planner_release(windows->planner, first, end);
		first = end + 1;
	}
	return error;
}

int uffdb_windows_trim(struct uffdb_windows *windows, uint64_t hva, uint64_t len)
{
	struct extent *of = extent_at(windows, hva);

	if (!of)
		return -ENOENT;
	return show_counts(windows, release_unneeded(windows, of, unit_at(of, hva),
						     unit_at(of, hva + len - 1) + 1));
}

static int unprotect_unit(struct uffdb_windows *windows, uint64_t hva, uint64_t len)
{
	int error = -EAGAIN;

	for (int i = 0; i < TRIES && error == -EAGAIN; i++)
		error = uffdb_uffd_writeprotect(windows->uffd, hva, len, false);
	/* Not registered for it, or not at all: then nothing is protected. */
	return error == -ENOENT || error == -EINVAL || error == -ESRCH ? 0 : error;
}

int uffdb_windows_unprotect(struct uffdb_windows *windows, uint64_t hva, uint64_t len)
{
	const uint64_t end = hva + len;
	int error = 0;

	/* By blocks: one that is not registered any more would end the whole call. */
	while (!error && hva < end) {
		uint64_t next = (hva / UFFDB_HUGE + 1) * UFFDB_HUGE;

		if (next > end)
			next = end;
		error = unprotect_unit(windows, hva, next - hva);
		hva = next;
	}
	return error;
}

static void note_changed(struct uffdb_windows *windows, uint64_t unit)
{
	atomic_store_explicit(&windows->changed[unit], 1, memory_order_relaxed);
	if (!atomic_exchange(&windows->any_changed, true))
		wake_whoever_tidies(windows);
}

void uffdb_windows_note_change(struct uffdb_windows *windows, uint64_t hva)
{
	struct extent *of = extent_at(windows, hva);

	if (of)
		note_changed(windows, unit_at(of, hva));
}

void uffdb_windows_note_all(struct uffdb_windows *windows)
{
	for (size_t i = 0; i < windows->nr; i++)
		for (uint64_t unit = windows->extents[i].first_unit;
		     unit < windows->extents[i].first_unit + windows->extents[i].count; unit++)
			if (windows->armed[unit])
				atomic_store_explicit(&windows->changed[unit], 1,
						      memory_order_relaxed);
	if (!atomic_exchange(&windows->any_changed, true))
		wake_whoever_tidies(windows);
}

bool uffdb_windows_changed(const struct uffdb_windows *windows)
{
	return atomic_load(&windows->any_changed);
}

void uffdb_windows_note_inflate(struct uffdb_windows *windows, uint64_t hva, uint64_t time_ns)
{
	struct extent *of = extent_at(windows, hva);
	uint64_t unit;

	if (!of)
		return;
	unit = unit_at(of, hva);
	/* The page is in the ledger; unregister_units() clears this first and looks there last. */
	if (!atomic_load(&windows->armed[unit]) || atomic_load(&windows->look_at_armed) ||
	    atomic_load(&windows->slack[unit]))
		note_fresh(windows, unit, time_ns);
}

/*
 * Is a unit to be armed? What made it fresh may have been taken back since: by a reset, or one page
 * after the other. The mark goes first: what is given up after this look makes it fresh again.
 */
static bool take_fresh(struct uffdb_windows *windows, const struct extent *of, uint64_t unit)
{
	return atomic_exchange(&windows->fresh[unit], 0) && is_needed(windows, of, unit);
}

static int arm_fresh_run(struct uffdb_windows *windows, const struct extent *of, uint64_t first,
			 uint64_t last)
{
	int error = uffdb_planner_need(windows->planner, first, last);

	if (error) {
		for (uint64_t unit = first; unit < last; unit++)
			note_fresh(windows, unit, 0);
		return error;
	}
	for (uint64_t unit = first; unit < last; unit++) {
		windows->unlooked[unit] = 1;
		/* A reset tells of what is armed (note_all()): not of what it came in between. */
		if (!is_needed(windows, of, unit))
			note_changed(windows, unit);
	}
	windows->any_unlooked = true;
	return 0;
}

void uffdb_windows_expect(struct uffdb_windows *windows, bool expected)
{
	atomic_store(&windows->expected, expected);
}

int uffdb_windows_arm_fresh(struct uffdb_windows *windows, uint64_t *since_ns)
{
	int armed = 0, error = 0, failed = 0;

	if (!atomic_exchange(&windows->any_fresh, false))
		return 0;
	*since_ns = windows->fresh_since_ns;
	for (size_t i = 0; i < windows->nr; i++) {
		struct extent *of = &windows->extents[i];
		uint64_t unit = of->first_unit, last = unit + of->count;

		for (; unit < last; unit++) {
			uint64_t end = unit;

			while (end < last && take_fresh(windows, of, end))
				end++;
			if (end == unit)
				continue;
			error = arm_fresh_run(windows, of, unit, end);
			if (error)
				failed = error;
			armed += (int)(end - unit);
			unit = end;
		}
	}
	show_counts(windows, error);
	return failed ? failed : armed;
}

void uffdb_windows_look_at_armed(struct uffdb_windows *windows)
{
	/* What came before is found by one look everywhere. */
	if (!atomic_exchange(&windows->look_at_armed, true))
		uffdb_windows_look_everywhere(windows);
}

void uffdb_windows_look_everywhere(struct uffdb_windows *windows)
{
	for (size_t i = 0; i < windows->nr; i++)
		for (uint64_t unit = windows->extents[i].first_unit;
		     unit < windows->extents[i].first_unit + windows->extents[i].count; unit++)
			windows->unlooked[unit] = windows->armed[unit] && !windows->slack[unit];
	windows->any_unlooked = true;
}

int uffdb_windows_look(struct uffdb_windows *windows, uffdb_look_fn *look, void *argument,
		       bool *looked)
{
	*looked = windows->any_unlooked;
	if (!windows->any_unlooked)
		return 0;
	windows->any_unlooked = false;
	for (size_t i = 0; i < windows->nr; i++) {
		struct extent *of = &windows->extents[i];

		for (uint64_t unit = of->first_unit; unit < of->first_unit + of->count; unit++) {
			struct uffdb_range range;
			int error;

			if (!windows->unlooked[unit])
				continue;
			windows->unlooked[unit] = 0;
			range = range_of_units(of, unit, unit + 1);
			error = look(argument, &range);
			if (error) {
				windows->unlooked[unit] = windows->any_unlooked = true;
				return error;
			}
		}
	}
	return 0;
}

/* Release a unit that lost its last ballooned page; to be tried again when that fails. */
static int tidy_unit(struct uffdb_windows *windows, const struct extent *of, uint64_t unit)
{
	int error;

	if (!atomic_exchange_explicit(&windows->changed[unit], 0, memory_order_relaxed))
		return 0;
	error = release_unneeded(windows, of, unit, unit + 1);
	if (error) {
		atomic_store_explicit(&windows->changed[unit], 1, memory_order_relaxed);
		atomic_store_explicit(&windows->any_changed, true, memory_order_release);
	}
	return error;
}

int uffdb_windows_tidy(struct uffdb_windows *windows)
{
	uint64_t before = uffdb_planner_armed(windows->planner);
	int error = 0;

	if (atomic_exchange_explicit(&windows->any_changed, false, memory_order_acquire)) {
		for (size_t i = 0; i < windows->nr; i++) {
			struct extent *of = &windows->extents[i];

			for (uint64_t unit = of->first_unit;
			     !error && unit < of->first_unit + of->count; unit++)
				error = tidy_unit(windows, of, unit);
		}
	}
	if (!error && uffdb_planner_could_improve(windows->planner))
		error = uffdb_planner_replan(windows->planner);
	show_counts(windows, error);
	return error ? error : (int)(before - uffdb_planner_armed(windows->planner));
}

int uffdb_windows_lift(struct uffdb_windows *windows)
{
	int error = 0;

	windows->lifted = true;
	for (size_t i = 0; i < windows->nr; i++) {
		const struct uffdb_block *block = windows->extents[i].block;
		/* In one call: somebody else waits for this memory. */
		int failed = uffdb_uffd_unregister(windows->uffd, block->hva, block->size);

		if (failed && failed != -ESRCH)
			error = failed;
		/* Restored, they trap again. */
		for (uint64_t unit = windows->extents[i].first_unit;
		     unit < windows->extents[i].first_unit + windows->extents[i].count; unit++)
			end_slack(windows, &windows->extents[i], unit);
	}
	return error;
}

/* Register the runs of an extent that are armed by the plan. */
static int restore_extent(struct uffdb_windows *windows, const struct extent *of)
{
	uint64_t unit = of->first_unit, last = unit + of->count;
	int error = windows->keep ? uffdb_uffd_register(windows->uffd, of->block->hva,
							of->block->size, UFFDB_MODE_WP)
				  : 0;

	while (!error && unit < last) {
		uint64_t end = unit;
		struct uffdb_range range;

		while (end < last && windows->armed[end])
			end++;
		if (end > unit) {
			range = range_of_units(of, unit, end);
			error = uffdb_uffd_register(windows->uffd, range.start, range.len,
						    of->modes);
		}
		unit = end + 1;
	}
	return error;
}

int uffdb_windows_restore(struct uffdb_windows *windows)
{
	int error = 0;

	for (size_t i = 0; !error && i < windows->nr; i++)
		error = restore_extent(windows, &windows->extents[i]);
	if (error)
		uffdb_windows_lift(windows);
	else
		windows->lifted = false;
	return error;
}

/* Is all of it trapped, in the balloon, and seen to since it was given up? */
static bool may_be_slack(const struct uffdb_windows *windows, const struct extent *of,
			 uint64_t unit)
{
	struct uffdb_range range = range_of_units(of, unit, unit + 1);

	return windows->armed[unit] && !windows->slack[unit] && !windows->fresh[unit] &&
	       !windows->changed[unit] && !windows->unlooked[unit] && range.len == UFFDB_HUGE &&
	       uffdb_ledger_count(windows->ledger, range.start, range.len) ==
		       range.len / UFFDB_PAGE;
}

/* Let go of a run, and keep khugepaged out of it: to register never takes a mode away. */
static int register_slack(struct uffdb_windows *windows, const struct uffdb_range *run)
{
	int error = uffdb_uffd_unregister(windows->uffd, run->start, run->len);

	/* Without it the run is the kernel's all the more, which is what slack counts with. */
	if (!error)
		(void)uffdb_uffd_register(windows->uffd, run->start, run->len, UFFDB_MODE_WP);
	return error;
}

uint64_t uffdb_windows_slacken(struct uffdb_windows *windows, uint64_t hva, uint64_t most_bytes,
			       struct uffdb_range *run)
{
	struct extent *of = extent_at(windows, hva);
	uint64_t first, last, most = most_bytes / UFFDB_HUGE;
	int error;

	if (!of || of->block->flags || windows->keep || windows->lifted || !most)
		return 0;
	first = unit_at(of, hva);
	if (!may_be_slack(windows, of, first))
		return 0;
	last = first + 1;
	while (last - first < most && last < of->first_unit + of->count &&
	       may_be_slack(windows, of, last))
		last++;
	while (last - first < most && first > of->first_unit &&
	       may_be_slack(windows, of, first - 1))
		first--;
	*run = range_of_units(of, first, last);
	if (uffdb_has_memory(windows->pagemap_fd, run->start, run->start + run->len))
		return 0;
	/* Before it can be taken unseen. */
	atomic_fetch_add(&windows->slack_bytes, run->len);
	for (uint64_t unit = first; unit < last; unit++)
		windows->slack[unit] = 1;
	error = register_slack(windows, run);
	if (error) {
		for (uint64_t unit = first; unit < last; unit++)
			end_slack(windows, of, unit);
		return 0;
	}
	wake_whoever_tidies(windows);
	return run->len;
}

bool uffdb_windows_next_slack(const struct uffdb_windows *windows, uint64_t *at,
			      struct uffdb_range *run)
{
	for (size_t i = 0; i < windows->nr; i++) {
		const struct extent *of = &windows->extents[i];
		uint64_t unit = *at > of->first_unit ? *at : of->first_unit, end;

		while (unit < of->first_unit + of->count && !windows->slack[unit])
			unit++;
		if (unit >= of->first_unit + of->count)
			continue;
		for (end = unit; end < of->first_unit + of->count && windows->slack[end];)
			end++;
		*run = range_of_units(of, unit, end);
		*at = end;
		return true;
	}
	return false;
}

int uffdb_windows_trap_slack(struct uffdb_windows *windows, const struct uffdb_range *run)
{
	const struct extent *of = extent_at(windows, run->start);

	if (!of || windows->lifted)
		return 0;
	return uffdb_uffd_register(windows->uffd, run->start, run->len, of->modes);
}

void uffdb_windows_end_slack(struct uffdb_windows *windows, const struct uffdb_range *run)
{
	const struct extent *of = extent_at(windows, run->start);
	uint64_t last;

	if (!of)
		return;
	last = unit_at(of, run->start + run->len - 1) + 1;
	for (uint64_t unit = unit_at(of, run->start); unit < last; unit++)
		end_slack(windows, of, unit);
}

void uffdb_windows_look_again_at(struct uffdb_windows *windows, uint64_t hva)
{
	const struct extent *of = extent_at(windows, hva);

	if (of)
		windows->unlooked[unit_at(of, hva)] = windows->any_unlooked = true;
}

bool uffdb_windows_is_slack(const struct uffdb_windows *windows, uint64_t hva)
{
	const struct extent *of;

	if (!atomic_load(&windows->slack_bytes))
		return false;
	of = extent_at(windows, hva);
	return of && windows->slack[unit_at(of, hva)];
}

uint64_t uffdb_windows_slack_bytes(const struct uffdb_windows *windows)
{
	return windows->slack_bytes;
}

bool uffdb_windows_is_armed(const struct uffdb_windows *windows, uint64_t hva)
{
	const struct extent *of = extent_at(windows, hva);

	return of && windows->armed[unit_at(of, hva)];
}

uint64_t uffdb_windows_count(const struct uffdb_windows *windows)
{
	return windows->windows;
}

uint64_t uffdb_windows_bytes(const struct uffdb_windows *windows)
{
	return windows->bytes;
}
