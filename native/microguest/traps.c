// SPDX-License-Identifier: GPL-2.0-or-later
#include "traps.h"
#include "answer.h"
#include "apic.h"
#include "io.h"
#include "race.h"
#include "smp.h"

enum {
	EXCEPTIONS = 32,
	FIRST_IRQ = 32,
	IRQ_COM1 = 4,
	IRQ_SPURIOUS = 7,
	GATES = FIRST_IRQ + 8,
	ENTRY_BYTES = 16,
	GATE_INTERRUPT = 0x8e00,

	PIC1_COMMAND = 0x20,
	PIC1_DATA = 0x21,
	PIC2_DATA = 0xa1,
};

struct frame {
	uint64_t vector, error, rip;
};

extern char trap_entries[], trap_serial[], trap_spurious[];

static struct {
	uint16_t offset_low, selector, flags, offset_middle;
	uint32_t offset_high, unused;
} gates[GATES] __attribute__((aligned(16)));

static const struct __attribute__((packed)) {
	uint16_t limit;
	const void *base;
} gates_pointer = {sizeof(gates) - 1, gates};

static void gate_set(int vector, const char *entry)
{
	/* All code is below 2 MiB: the higher parts of the offset are 0. */
	gates[vector].offset_low = (uintptr_t)entry & 0xffff;
	gates[vector].offset_middle = (uint16_t)((uintptr_t)entry >> 16);
	gates[vector].selector = 8;
	gates[vector].flags = GATE_INTERRUPT;
}

static void pic_init(void)
{
	out8(PIC1_COMMAND, 0x11); /* initialise: edge-triggered, four words follow */
	out8(PIC1_DATA, FIRST_IRQ);
	out8(PIC1_DATA, 0x04);
	out8(PIC1_DATA, 0x01);
	out8(PIC1_DATA, (uint8_t)~(1 << IRQ_COM1));
	out8(PIC2_DATA, 0xff);
	/* Let the PIC's interrupt through: SeaBIOS does it, qboot does not. */
	*apic_register(APIC_SPURIOUS) = 0x1ff;
	*apic_register(APIC_LINT0) = 0x700;
}

void traps_load(void)
{
	__asm__ volatile("lidt %0" : : "m"(gates_pointer));
}

void traps_init(void)
{
	for (int vector = 0; vector < EXCEPTIONS; vector++)
		gate_set(vector, trap_entries + vector * ENTRY_BYTES);
	gate_set(FIRST_IRQ + IRQ_COM1, trap_serial);
	gate_set(FIRST_IRQ + IRQ_SPURIOUS, trap_spurious);
	pic_init();
	traps_load();
}

void traps_answer(const char *where, const struct traps_exception *exception)
{
	answer_begin("err exception");
	answer_words(where);
	answer_hex("vector", exception->vector);
	answer_hex("error", exception->error);
	answer_hex("rip", exception->rip);
	answer_hex("cr2", exception->cr2);
	answer_end();
}

static bool interrupts;

void traps_set_interrupts(bool on)
{
	__atomic_store_n(&interrupts, on, __ATOMIC_RELAXED);
}

/* None comes but COM1's, whose handler does no harm at any time. */
void traps_open(void)
{
	if (__atomic_load_n(&interrupts, __ATOMIC_RELAXED))
		__asm__ volatile("sti" : : : "memory");
}

void traps_close(void)
{
	__asm__ volatile("cli" : : : "memory");
}

void boot_resume(void) __attribute__((noreturn));

void __attribute__((noreturn)) trap_exception(const struct frame *frame)
{
	struct traps_exception exception = {frame->vector, frame->error, frame->rip, 0};

	__asm__ volatile("mov %%cr2, %0" : "=r"(exception.cr2));
	if (smp_on_second())
		smp_fail_second(&exception);
	race_give_up();
	traps_answer("", &exception);
	boot_resume();
}
