// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdio.h>

#include "uffdballoon.h"

int main(void)
{
	int major, minor, patch;

	if (sscanf(uffdb_version(), "%d.%d.%d", &major, &minor, &patch) != 3) {
		fprintf(stderr, "'%s' is not of the form 1.2.3\n", uffdb_version());
		return 1;
	}
	return 0;
}
