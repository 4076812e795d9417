// SPDX-License-Identifier: GPL-2.0-or-later
#include "smp.h"
#include "io.h"

bool smp_on_second(void)
{
	return false;
}

void smp_fail_second(void)
{
	halt();
}
