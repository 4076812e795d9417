// SPDX-License-Identifier: GPL-2.0-or-later
/* Write a byte to an I/O port, as a driver does whose module is not there. */
#include <sys/io.h>

#include "guestwork.h"

int port_main(int argc, char **argv)
{
	uint64_t port = argc > 1 ? number(argv[1]) : 0;
	uint64_t value = argc > 2 ? number(argv[2]) : 0;

	if (ioperm(port, 1, 1))
		die("ioperm");
	outb((unsigned char)value, (unsigned short)port);
	return 0;
}
