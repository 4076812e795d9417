// SPDX-License-Identifier: GPL-2.0-or-later
#include <stddef.h>

#include "second.h"
#include "smp.h"

/* What it is to do, and what it has done. */
static struct {
	struct memory_span span;
	bool write;
	struct memory_touch touch;
} stretch;

static void work(void)
{
	memory_touch(&stretch.span, stretch.write, 0, &stretch.touch);
}

const char *second_begin(const struct memory_span *span, bool write)
{
	const char *const refusal = smp_prepare();

	if (refusal)
		return refusal;
	stretch.span = *span;
	stretch.write = write;
	stretch.touch.count = 0;
	smp_begin(work);
	return NULL;
}

uint64_t second_done(void)
{
	return __atomic_load_n(&stretch.touch.count, __ATOMIC_ACQUIRE);
}

const struct traps_exception *second_wait(struct memory_touch *touch)
{
	const struct traps_exception *const exception = smp_wait();

	*touch = stretch.touch;
	return exception;
}
