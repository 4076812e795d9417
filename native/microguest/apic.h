/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_APIC_H
#define MICROGUEST_APIC_H

#include <stdint.h>

#include "paging.h"

#define APIC_BASE 0xfee00000u

enum apic_register {
	APIC_ID = 0x020,
	APIC_SPURIOUS = 0x0f0,
	APIC_COMMAND = 0x300,
	APIC_COMMAND_TARGET = 0x310,
	APIC_LINT0 = 0x350,
};

/* This processor's local APIC. */
static inline volatile uint32_t *apic_register(enum apic_register number)
{
	return (volatile uint32_t *)paging_map(APIC_BASE + number);
}

#endif
