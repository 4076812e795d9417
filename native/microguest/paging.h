/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_PAGING_H
#define MICROGUEST_PAGING_H

#include <stdint.h>

/* All that the guest itself uses lies below; from here on memory belongs to the tests. */
#define PAGING_OWN_END 0x200000u

/*
 * Make a guest-physical address accessible: it is mapped one to one, with its whole GiB.
 * Beyond 64 GiB nothing is mapped, and the access raises an exception.
 */
void *paging_map(uint64_t gpa);

#endif
