// SPDX-License-Identifier: GPL-2.0-or-later
#include "balloon.h"
#include "console.h"
#include "multiboot.h"
#include "serial.h"
#include "traps.h"

void main(const struct multiboot_info *info) __attribute__((noreturn));

void main(const struct multiboot_info *info)
{
	multiboot_init(info);
	traps_init();
	serial_init();
	balloon_init();
	serial_write("microguest 1\r\n");
	console_run();
}
