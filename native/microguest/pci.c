// SPDX-License-Identifier: GPL-2.0-or-later
/* Configuration mechanism #1 (PCI Local Bus Specification 3.0, 3.2.2.3.2). */
#include "pci.h"
#include "io.h"

enum {
	ADDRESS = 0xcf8,
	DATA = 0xcfc,
	SLOTS = 32,

	ID = 0x00,
	COMMAND = 0x04,
	COMMAND_PORTS = 0x1,
	COMMAND_MASTER = 0x4,
	BAR0 = 0x10,
	BAR_PORTS = 0x1,
};

static void select_register(uint32_t slot, uint32_t offset)
{
	out32(ADDRESS, 1u << 31 | slot << 11 | offset);
}

static uint32_t read_register(uint32_t slot, uint32_t offset)
{
	select_register(slot, offset);
	return in32(DATA);
}

static void write_register(uint32_t slot, uint32_t offset, uint32_t value)
{
	select_register(slot, offset);
	out32(DATA, value);
}

int pci_enable_ports(uint16_t vendor, uint16_t device, uint16_t port)
{
	for (uint32_t slot = 0; slot < SLOTS; slot++) {
		if (read_register(slot, ID) != ((uint32_t)device << 16 | vendor))
			continue;
		if (!(read_register(slot, BAR0) & BAR_PORTS))
			return -1;
		write_register(slot, COMMAND, 0);
		write_register(slot, BAR0, port);
		write_register(slot, COMMAND, COMMAND_PORTS | COMMAND_MASTER);
		return 0;
	}
	return -1;
}
