// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The windows of the target: what the planner decides, done by userfaultfd. A
 * window is a run of registered 2 MiB blocks; the kernel merges the VMAs of
 * neighbours.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"
#include "planner.h"

/* A RAM block, and the planner's units that it is: 2 MiB blocks of the address space. */
struct extent {
	const struct uffdb_block *block;
	uint32_t modes;
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
	_Atomic bool any_changed;
	_Atomic uint64_t windows, bytes; /* as of the last change, for any thread */
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
static struct uffdb_range range_of(const struct extent *of, uint64_t first, uint64_t last)
{
	uint64_t start = (of->first_huge + first - of->first_unit) * UFFDB_HUGE;
	uint64_t end = (of->first_huge + last - of->first_unit) * UFFDB_HUGE;

	if (start < of->block->hva)
		start = of->block->hva;
	if (end > of->block->hva + of->block->size)
		end = of->block->hva + of->block->size;
	return (struct uffdb_range){start, end - start};
}

static uint64_t unit_at(const struct extent *of, uint64_t hva)
{
	return of->first_unit + hva / UFFDB_HUGE - of->first_huge;
}

static int arm(void *argument, uint64_t first, uint64_t last)
{
	struct uffdb_windows *windows = argument;
	const struct extent *of = extent_of_unit(windows, first);
	struct uffdb_range range = range_of(of, first, last);

	int error = uffdb_uffd_register(windows->uffd, range.start, range.len, of->modes);

	if (!error)
		windows->bytes += range.len;
	return error;
}

static int disarm(void *argument, uint64_t first, uint64_t last)
{
	struct uffdb_windows *windows = argument;
	struct uffdb_range range = range_of(extent_of_unit(windows, first), first, last);
	int error = uffdb_uffd_unregister(windows->uffd, range.start, range.len);

	/*
	 * A target that unmapped it, or is gone (ENOMEM, as without room for a VMA),
	 * has no window there either.
	 */
	if (error == -ESRCH || error == -EINVAL ||
	    (error == -ENOMEM && uffdb_is_gone(windows->pagemap_fd)))
		error = 0;
	if (!error)
		windows->bytes -= range.len;
	return error;
}

static bool populated(void *argument, uint64_t first, uint64_t last)
{
	struct uffdb_windows *windows = argument;
	struct uffdb_range range = range_of(extent_of_unit(windows, first), first, last);

	return windows->pagemap_fd >= 0 &&
	       uffdb_is_populated(windows->pagemap_fd, range.start, range.start + range.len);
}

/* Number the units of all RAM blocks, a barrier between each two of them. */
static uint64_t number_units(struct uffdb_windows *windows,
			     const struct uffdb_windows_config *config)
{
	const struct uffdb_block *blocks = uffdb_ledger_blocks(config->ledger, &windows->nr);
	uint32_t special = UFFDB_BLOCK_SHARED | UFFDB_BLOCK_HUGETLB;
	uint64_t units = 0;

	for (size_t i = 0; i < windows->nr; i++) {
		struct extent *of = &windows->extents[i];

		of->block = &blocks[i];
		of->modes = blocks[i].flags & special ? config->shared_modes : config->modes;
		of->first_huge = blocks[i].hva / UFFDB_HUGE;
		of->first_unit = units;
		of->count = (blocks[i].hva + blocks[i].size - 1) / UFFDB_HUGE - of->first_huge + 1;
		units += of->count + 1;
	}
	return units;
}

static int set_up(struct uffdb_windows *windows, const struct uffdb_windows_config *config)
{
	const struct uffdb_planner_ops ops = {arm, disarm, populated, windows};
	uint64_t units;
	int error;

	uffdb_ledger_blocks(config->ledger, &windows->nr);
	windows->extents = calloc(windows->nr + 1, sizeof(*windows->extents));
	if (!windows->extents)
		return -ENOMEM;
	units = number_units(windows, config);
	windows->changed = calloc(units + 1, 1);
	if (!windows->changed)
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
	error = set_up(windows, config);
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
	free((void *)windows->changed);
	free(windows->extents);
	free(windows);
}

/* Let others see the counts; called after each change. */
static int changed(struct uffdb_windows *windows, int error)
{
	windows->windows = uffdb_planner_windows(windows->planner);
	return error;
}

int uffdb_windows_arm(struct uffdb_windows *windows, uint64_t hva, uint64_t len)
{
	struct extent *of = extent_at(windows, hva);

	if (!of || !len || len > of->block->hva + of->block->size - hva)
		return -ENOENT;
	return changed(windows, uffdb_planner_need(windows->planner, unit_at(of, hva),
						   unit_at(of, hva + len - 1) + 1));
}

static bool holds_ballooned(const struct uffdb_windows *windows, const struct extent *of,
			    uint64_t unit)
{
	struct uffdb_range range = range_of(of, unit, unit + 1), found;

	return uffdb_ledger_next(windows->ledger, range.start, range.start + range.len, &found) > 0;
}

/* Release the units of [first, last) that hold nothing, run by run. */
static int release(struct uffdb_windows *windows, const struct extent *of, uint64_t first,
		   uint64_t last)
{
	int error = 0;

	while (!error && first < last) {
		uint64_t end = first;

		while (end < last && !holds_ballooned(windows, of, end))
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
	return changed(windows,
		       release(windows, of, unit_at(of, hva), unit_at(of, hva + len - 1) + 1));
}

void uffdb_windows_note_change(struct uffdb_windows *windows, uint64_t hva)
{
	struct extent *of = extent_at(windows, hva);

	if (!of)
		return;
	atomic_store_explicit(&windows->changed[unit_at(of, hva)], 1, memory_order_relaxed);
	atomic_store_explicit(&windows->any_changed, true, memory_order_release);
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
				if (atomic_exchange_explicit(&windows->changed[unit], 0,
							     memory_order_relaxed))
					error = release(windows, of, unit, unit + 1);
		}
	}
	if (!error && uffdb_planner_could_improve(windows->planner))
		error = uffdb_planner_replan(windows->planner);
	changed(windows, error);
	return error ? error : (int)(before - uffdb_planner_armed(windows->planner));
}

uint64_t uffdb_windows_count(const struct uffdb_windows *windows)
{
	return windows->windows;
}

uint64_t uffdb_windows_bytes(const struct uffdb_windows *windows)
{
	return windows->bytes;
}
