/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_PCI_H
#define MICROGUEST_PCI_H

#include <stdint.h>

/*
 * Find a device on bus 0 and give its BAR 0, which must be of ports, the ports from @port on.
 * Firmware is not relied on: the fast one (qboot) sets up no BARs.
 * Return: 0, or -1 when there is no such device.
 */
int pci_enable_ports(uint16_t vendor, uint16_t device, uint16_t port);

#endif
