// SPDX-License-Identifier: GPL-2.0-or-later
#include <stddef.h>

#include "io.h"
#include "race.h"
#include "smp.h"

enum {
	FIRST = 0,
	SECOND = 1,
};

/* Of one processor, in a line of its own: the other spins on it. */
struct runner {
	uint64_t arrived; /* at so many barriers */
	uint32_t value;	  /* what it read */
} __attribute__((aligned(64)));

static struct {
	struct memory_span span;
	bool write;
	bool running;  /* on the first processor */
	bool given_up; /* by the first processor */
	struct runner runners[SMP_PROCESSORS];
} race;

/* Will @processor never come to the barrier? */
static bool is_out(int processor)
{
	return processor == SECOND ? smp_failed()
				   : __atomic_load_n(&race.given_up, __ATOMIC_ACQUIRE);
}

static bool has_arrived(int processor, uint64_t barrier)
{
	return __atomic_load_n(&race.runners[processor].arrived, __ATOMIC_ACQUIRE) >= barrier;
}

/* Return: whether both have come to it. */
static bool meet(int processor)
{
	const int other = SECOND - processor;
	const uint64_t barrier = race.runners[processor].arrived + 1;

	__atomic_store_n(&race.runners[processor].arrived, barrier, __ATOMIC_RELEASE);
	while (!has_arrived(other, barrier)) {
		/* It may have come, and gone out on its way on, since it was asked for. */
		if (is_out(other))
			return has_arrived(other, barrier);
		pause();
	}
	return true;
}

static uint64_t word_gpa(int processor, uint64_t gpa)
{
	return race.write && processor == SECOND ? gpa + RACE_SECOND_OFFSET : gpa;
}

static uint32_t written_value(int processor, uint64_t gpa)
{
	return processor == SECOND ? ~(uint32_t)gpa : (uint32_t)gpa;
}

/* Return: whether the other has been there too. */
static bool run_place(int processor, uint64_t gpa)
{
	const uint64_t word = word_gpa(processor, gpa);
	const uint32_t value = written_value(processor, gpa);

	if (!meet(processor))
		return false;
	if (race.write)
		memory_write(word, value);
	else
		race.runners[processor].value = memory_read(word);
	return meet(processor);
}

static void run_second(void)
{
	for (uint64_t offset = 0; offset < race.span.size; offset += race.span.stride) {
		if (!run_place(SECOND, race.span.gpa + offset))
			return;
	}
}

/* Only the first looks; the second is then held at the next place's first barrier. */
static bool is_good(uint64_t gpa)
{
	if (!race.write)
		return race.runners[FIRST].value == race.runners[SECOND].value;
	for (int processor = 0; processor < SMP_PROCESSORS; processor++) {
		if (memory_read(word_gpa(processor, gpa)) != written_value(processor, gpa))
			return false;
	}
	return true;
}

static void run_first(struct race_result *result)
{
	for (uint64_t offset = 0; offset < race.span.size; offset += race.span.stride) {
		const uint64_t gpa = race.span.gpa + offset;

		if (!run_place(FIRST, gpa))
			return;
		result->count++;
		if (!is_good(gpa) && !result->check.bad++)
			result->check.first_bad_gpa = gpa;
	}
}

const char *race_run(const struct memory_span *span, bool write, struct race_result *result,
		     const struct traps_exception **exception)
{
	const char *const refusal = smp_prepare();

	if (refusal)
		return refusal;
	*result = (struct race_result){0};
	race.span = *span;
	race.write = write;
	race.given_up = false;
	for (int processor = 0; processor < SMP_PROCESSORS; processor++)
		race.runners[processor].arrived = 0;
	race.running = true;
	smp_begin(run_second);
	run_first(result);
	*exception = smp_wait();
	race.running = false;
	return NULL;
}

void race_give_up(void)
{
	if (!race.running)
		return;
	race.running = false;
	__atomic_store_n(&race.given_up, true, __ATOMIC_RELEASE);
	smp_wait();
}
