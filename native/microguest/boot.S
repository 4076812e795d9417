/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Entry of the first processor: multiboot leaves it in 32-bit mode without paging, and here it
 * goes into 64-bit mode. Not for speed: PVM's KVM (Linux 6.18) refuses 32-bit paging of any kind,
 * and without paging memory above 4 GiB is out of reach.
 */
#define MULTIBOOT_MAGIC 0x1BADB002
#define MULTIBOOT_FLAGS 0x2 /* give us the memory map */
#define ENTRIES 512
#define PAGE_FLAGS 0x83 /* large, writable, present */
#define TABLE_FLAGS 0x03 /* writable, present */

	.section .multiboot, "a"
	.align 4
	.long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

	.text
	.code32
	.globl boot_start
boot_start:
	cli
	cld
	mov %ebx, %ebp /* the multiboot information */

	/* The first GiB one to one; paging.c adds the rest as it is asked for. */
	movl $paging_gibs + TABLE_FLAGS, paging_top
	movl $paging_pages + TABLE_FLAGS, paging_gibs
	mov $paging_pages, %edi
	mov $PAGE_FLAGS, %eax
	mov $ENTRIES, %ecx
1:	mov %eax, (%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 1b

	mov $boot_stack_top, %esp
	mov $1f, %ebx
	jmp boot_long_mode
	.code64
1:	mov %ebp, %edi
	call main

	.code32
/* Go on in 64-bit mode at %ebx; %esp and %ebp are kept. Any processor, 32-bit, without paging. */
	.globl boot_long_mode
boot_long_mode:
	mov $0x220, %eax /* PAE, OSFXSR */
	mov %eax, %cr4
	mov $paging_top, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx /* EFER.LME */
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	and $0xfffffffb, %eax /* no emulation of the FPU: movups is wanted */
	or $0x80000002, %eax
	mov %eax, %cr0
	lgdt boot_gdt_pointer
	mov $16, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	ljmp $8, $1f
	.code64
1:	jmp *%rbx

/* void boot_resume(void): drop all that is on the stack and take the next command. */
	.globl boot_resume
boot_resume:
	mov $boot_stack_top, %esp
	call console_run

	.data
	.align 8
gdt:	.quad 0
	.quad 0x00af9a000000ffff /* 8: 64-bit code */
	.quad 0x00cf92000000ffff /* 16: flat data */
	.quad 0x00cf9a000000ffff /* 24: 32-bit code, for the second processor on its way */
	.globl boot_gdt_pointer
boot_gdt_pointer:
	.word . - gdt - 1
	.long gdt
	.long 0

	.bss
	.align 16
	.skip 16384
boot_stack_top:
