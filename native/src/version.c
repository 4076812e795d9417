// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffdballoon.h"

const char *uffdb_version(void)
{
	return UFFDB_VERSION;
}

const char *uffdb_soname(void)
{
	return "libuffdballoon.so." UFFDB_SOVERSION;
}
