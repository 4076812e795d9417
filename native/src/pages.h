/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sizes of pages, in bytes. */
#ifndef UFFDB_PAGES_H
#define UFFDB_PAGES_H

#define UFFDB_PAGE 4096ull
#define UFFDB_HUGE (2ull << 20)

#endif
