// SPDX-License-Identifier: GPL-2.0-or-later
/* COM1. Output is polled; input is waited for asleep, so that an idle guest costs the host nothing.
 */
#include "serial.h"
#include "io.h"

enum {
	COM1 = 0x3f8,
	DATA = COM1,
	INTERRUPT_ENABLE = COM1 + 1,
	FIFO_CONTROL = COM1 + 2,
	LINE_CONTROL = COM1 + 3,
	MODEM_CONTROL = COM1 + 4,
	LINE_STATUS = COM1 + 5,

	STATUS_INPUT = 0x01,
	STATUS_OUTPUT_EMPTY = 0x20,
	FIFO_BYTES = 16,
};

void serial_init(void)
{
	out8(LINE_CONTROL, 0x03); /* 8 bits, no parity */
	out8(FIFO_CONTROL, 0x01);
	/* Switching the FIFO on dropped a byte that came before, but QEMU (7.2, serial.c) asks for
	 * more input only after a read. */
	in8(DATA);
	out8(MODEM_CONTROL, 0x0b); /* OUT2 lets the interrupt through */
	out8(INTERRUPT_ENABLE, 0x01);
}

char serial_read(void)
{
	/* A byte that comes after the test is held by the PIC until `hlt` sleeps: `sti` takes
	 * effect one instruction later. */
	while (!(in8(LINE_STATUS) & STATUS_INPUT))
		__asm__ volatile("sti; hlt; cli" : : : "memory");
	return (char)in8(DATA);
}

/* As much as the FIFO takes, by one instruction: each `out` of its own is an exit of the vCPU. */
static const char *write_burst(const char *text)
{
	uint64_t count = 0;

	while (text[count] && count < FIFO_BYTES)
		count++;
	while (!(in8(LINE_STATUS) & STATUS_OUTPUT_EMPTY))
		pause();
	__asm__ volatile("rep outsb" : "+S"(text), "+c"(count) : "d"(DATA) : "memory");
	return text;
}

void serial_write(const char *text)
{
	while (*text)
		text = write_burst(text);
}
