/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Interrupt entries: 32 exceptions, and the one interrupt that wakes the console. */
	.text
	.macro entry vector
	.align 16
	.if \vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17 || \vector == 21
	/* the processor pushed an error code */
	.else
	push $0
	.endif
	push $\vector
	jmp common
	.endm

	.align 16
	.globl trap_entries
trap_entries:
	.irp vector, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	entry \vector
	.endr
	.irp vector, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	entry \vector
	.endr

common:
	mov %rsp, %rdi
	and $~15, %rsp
	call trap_exception /* does not come back */

/* Wakes the `hlt` that waits for input; serial.c reads the byte. */
	.globl trap_serial
trap_serial:
	push %rax
	mov $0x20, %al /* end of interrupt */
	out %al, $0x20
	pop %rax
	iretq

/* The first PIC may say 7 for an interrupt that went away; it wants no answer. */
	.globl trap_spurious
trap_spurious:
	iretq
