/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef UFFDBALLOON_H
#define UFFDBALLOON_H

/**
 * uffdb_version - the version of this library, as "1.2.3".
 *
 * Return: a string that lives as long as the process.
 */
const char *uffdb_version(void);

#endif
