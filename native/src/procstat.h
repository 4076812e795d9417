/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The text of /proc/PID/stat. */
#ifndef UFFDB_PROCSTAT_H
#define UFFDB_PROCSTAT_H

#include <string.h>

/*
 * Find a field of the text of /proc/PID/stat (proc(5)), which number 3 is the first of after the
 * name. Return: NULL when there are not so many.
 */
static inline const char *uffdb_stat_field(const char *text, int number)
{
	/* The second field is a name in parentheses that may hold anything. */
	const char *field = strrchr(text, ')');

	for (int i = 2; field && i < number; i++)
		field = strchr(field + 1, ' ');
	return field ? field + 1 : NULL;
}

#endif
