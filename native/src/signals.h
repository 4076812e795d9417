/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What signals the library uses. */
#ifndef UFFDB_SIGNALS_H
#define UFFDB_SIGNALS_H

#include <signal.h>

/* Ends a blocking read of the fault loop. A macro of libc's: no constant. */
#define UFFDB_WAKE_SIGNAL (SIGRTMAX - 1)

/* Has a thread drop its capabilities: capabilities.c. */
#define UFFDB_DROP_SIGNAL (SIGRTMAX - 2)

#endif
