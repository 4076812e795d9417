// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What is done to memory. PVM's KVM emulates such guests at some 250 ns an instruction, whatever
 * the instruction does; so the fewer the better: lines are stored by 16 bytes, for one.
 */
#include "memory.h"
#include "io.h"
#include "paging.h"

enum {
	LINE_WORDS = MEMORY_LINE_BYTES / sizeof(uint64_t)
};

struct pair {
	uint64_t words[2];
} __attribute__((aligned(16)));

uint32_t memory_read(uint64_t gpa)
{
	return *(volatile uint32_t *)paging_map(gpa);
}

void memory_write(uint64_t gpa, uint32_t value)
{
	*(volatile uint32_t *)paging_map(gpa) = value;
}

/* A line is this, four times over. */
static struct pair pattern(uint64_t gpa, uint32_t seed)
{
	const uint32_t base = (uint32_t)(gpa / MEMORY_LINE_BYTES) * 0x9e3779b1u + seed;

	return (struct pair){
		{(uint64_t)~base << 32 | base, (uint64_t)base << 32 | (base ^ 0x55555555u)}};
}

static void store_line(void *line, const struct pair *pair)
{
	__asm__ volatile("movups (%1), %%xmm0\n\t"
			 "movups %%xmm0, (%0)\n\t"
			 "movups %%xmm0, 16(%0)\n\t"
			 "movups %%xmm0, 32(%0)\n\t"
			 "movups %%xmm0, 48(%0)"
			 :
			 : "r"(line), "r"(pair)
			 : "memory");
}

void memory_fill(const struct memory_span *span, uint32_t seed)
{
	for (uint64_t offset = 0; offset < span->size; offset += span->stride) {
		const struct pair pair = pattern(span->gpa + offset, seed);

		store_line(paging_map(span->gpa + offset), &pair);
	}
}

static bool line_matches(const uint64_t *line, const struct pair *pair)
{
	for (int i = 0; i < LINE_WORDS; i += 2) {
		if (line[i] != pair->words[0] || line[i + 1] != pair->words[1])
			return false;
	}
	return true;
}

void memory_verify(const struct memory_span *span, uint32_t seed, struct memory_check *check)
{
	check->bad = 0;
	check->first_bad_gpa = 0;
	for (uint64_t offset = 0; offset < span->size; offset += span->stride) {
		const struct pair pair = pattern(span->gpa + offset, seed);

		if (line_matches(paging_map(span->gpa + offset), &pair))
			continue;
		if (!check->bad++)
			check->first_bad_gpa = span->gpa + offset;
	}
}

static uint64_t rotate(uint64_t value)
{
	return value << 1 | value >> 63;
}

/* Turned between the words, so that what changes places is seen too. */
static uint64_t add_line(const uint64_t *line, uint64_t sum)
{
	for (int i = 0; i < LINE_WORDS; i++)
		sum = rotate(sum) + line[i];
	return sum;
}

uint64_t memory_checksum(const struct memory_span *span)
{
	uint64_t sum = 0;

	/* FNV's prime; the 1 makes lines of zeros count. */
	for (uint64_t offset = 0; offset < span->size; offset += span->stride)
		sum = add_line(paging_map(span->gpa + offset), sum) * 0x100000001b3u + 1;
	return sum;
}

static uint64_t touch_one(uint64_t gpa, bool write)
{
	volatile uint32_t *const word = paging_map(gpa);
	const uint64_t start = rdtsc();

	if (write)
		*word = (uint32_t)gpa;
	else
		(void)*word;
	return rdtsc() - start;
}

static void record(uint64_t gpa, uint64_t cycles)
{
	memory_write(gpa, cycles < UINT32_MAX ? (uint32_t)cycles : UINT32_MAX);
}

void memory_touch(const struct memory_span *span, bool write, uint64_t record_gpa,
		  struct memory_touch *touch)
{
	*touch = (struct memory_touch){.min = UINT64_MAX};
	for (uint64_t offset = 0; offset < span->size; offset += span->stride) {
		const uint64_t cycles = touch_one(span->gpa + offset, write);

		if (record_gpa)
			record(record_gpa + touch->count * sizeof(uint32_t), cycles);
		touch->total += cycles;
		if (cycles < touch->min)
			touch->min = cycles;
		if (cycles > touch->max)
			touch->max = cycles;
		__atomic_store_n(&touch->count, touch->count + 1, __ATOMIC_RELEASE);
	}
}
