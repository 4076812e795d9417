// SPDX-License-Identifier: GPL-2.0-or-later
/* Started as in the Intel SDM, volume 3, 9.4.4.1; then it waits for work in memory. */
#include <stddef.h>

#include "apic.h"
#include "io.h"
#include "smp.h"

enum {
	SECOND_ID = 1, /* QEMU counts them */
	ID_SHIFT = 24,
	ENTRY_GPA = 0x8000,
	ENTRY_PAGE = ENTRY_GPA >> 12,
	GDT_POINTER_BYTES = 6,

	COMMAND_INIT = 0x4500,
	COMMAND_STARTUP = 0x4600,

	/* Longer than the 10 ms and 200 us that are asked for, up to some 5 GHz. */
	INIT_CYCLES = 50000000,
	STARTUP_CYCLES = 1000000,
};

/* Some seconds: what is started by then is emulated on a busy machine, or is not there. */
#define START_CYCLES (1ull << 33)

extern const char smp_entry[], smp_entry_end[], boot_gdt_pointer[];

void smp_resume(void) __attribute__((noreturn));
void smp_serve(void) __attribute__((noreturn));

/* Written by both processors, each in its turn; @work says whose it is. */
static struct {
	bool up;
	bool failed;
	smp_work *work; /* NULL: it has none */
	struct traps_exception exception;
} second;

static void copy(char *to, const char *from, uint64_t bytes)
{
	while (bytes--)
		*to++ = *from++;
}

static void install_entry(void)
{
	const uint64_t bytes = (uint64_t)(smp_entry_end - smp_entry);
	char *const entry = paging_map(ENTRY_GPA);

	copy(entry, smp_entry, bytes);
	copy(entry + bytes, boot_gdt_pointer, GDT_POINTER_BYTES);
}

/* Return: whether it has come up within so many cycles. */
static bool wait_until_up(uint64_t cycles)
{
	const uint64_t start = rdtsc();

	while (!__atomic_load_n(&second.up, __ATOMIC_ACQUIRE)) {
		if (rdtsc() - start > cycles)
			return false;
		pause();
	}
	return true;
}

static bool send(uint32_t command, uint64_t cycles)
{
	*apic_register(APIC_COMMAND_TARGET) = SECOND_ID << ID_SHIFT;
	*apic_register(APIC_COMMAND) = command;
	return wait_until_up(cycles);
}

static bool start(void)
{
	if (wait_until_up(0))
		return true;
	install_entry();
	return send(COMMAND_INIT, INIT_CYCLES) ||
	       send(COMMAND_STARTUP | ENTRY_PAGE, STARTUP_CYCLES) ||
	       send(COMMAND_STARTUP | ENTRY_PAGE, START_CYCLES);
}

void smp_serve(void)
{
	traps_load();
	__atomic_store_n(&second.up, true, __ATOMIC_RELEASE);
	for (;;) {
		while (!smp_busy())
			pause();
		traps_open();
		second.work();
		traps_close();
		__atomic_store_n(&second.work, NULL, __ATOMIC_RELEASE);
	}
}

const char *smp_prepare(void)
{
	if (!start())
		return "there is no second processor";
	return smp_busy() ? "the second processor is busy" : NULL;
}

void smp_begin(smp_work *work)
{
	second.failed = false;
	__atomic_store_n(&second.work, work, __ATOMIC_RELEASE);
}

bool smp_busy(void)
{
	return __atomic_load_n(&second.work, __ATOMIC_ACQUIRE);
}

bool smp_failed(void)
{
	return __atomic_load_n(&second.failed, __ATOMIC_ACQUIRE);
}

const struct traps_exception *smp_wait(void)
{
	while (smp_busy())
		pause();
	return smp_failed() ? &second.exception : NULL;
}

bool smp_on_second(void)
{
	return *apic_register(APIC_ID) >> ID_SHIFT == SECOND_ID;
}

void smp_fail_second(const struct traps_exception *exception)
{
	second.exception = *exception;
	__atomic_store_n(&second.failed, true, __ATOMIC_RELEASE);
	__atomic_store_n(&second.work, NULL, __ATOMIC_RELEASE);
	smp_resume();
}
