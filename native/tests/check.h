/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef UFFDB_TESTS_CHECK_H
#define UFFDB_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define SKIPPED 77 /* what ctest calls skipped */

#define CHECK(condition)                                                                \
	do {                                                                            \
		if (!(condition)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                        \
		}                                                                       \
	} while (0)

#endif
