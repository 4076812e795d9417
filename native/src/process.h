/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Other processes, beside what the library offers. */
#ifndef UFFDB_PROCESS_H
#define UFFDB_PROCESS_H

#include "uffdballoon.h"

#define UFFDB_STATUS_BYTES 4096 /* of /proc/PID/status */

/* Read the beginning of a small file as text; false when there is nothing to read. */
bool uffdb_read_text(int dir_fd, const char *path, char *text, size_t room);

/* What a process keeps from being discarded by mlock(), in bytes; 0 when it cannot be told. */
int64_t uffdb_locked_bytes(int pid);

/* End a process, whatever it does. */
void uffdb_process_kill(int pidfd);

#endif
