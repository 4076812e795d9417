/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Entry of the second processor, in real mode. smp.c copies it below 1 MiB, where such a processor
 * begins, and the GDT's pointer behind it: from there it reaches nothing above.
 */
	.section .rodata
	.code16
	.globl smp_entry, smp_entry_end
smp_entry:
	cli
	mov %cs, %ax
	mov %ax, %ds
	lgdtl smp_entry_end - smp_entry
	mov $0x11, %eax /* protected, and with the caches that INIT switched off */
	mov %eax, %cr0
	ljmpl $24, $second_protected
smp_entry_end:

	.text
	.code32
second_protected:
	mov $16, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $smp_resume, %ebx
	jmp boot_long_mode

/* void smp_resume(void): drop all that is on the second processor's stack and wait for work. */
	.code64
	.globl smp_resume
smp_resume:
	mov $stack_top, %esp
	call smp_serve

	.bss
	.align 16
	.skip 16384
stack_top:
