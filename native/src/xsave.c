// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffdballoon.h"

#if defined(__x86_64__)
#include <cpuid.h>

#define XSAVE_LEAF	 0xd
#define XSAVE_HEADER_END 576u /* the legacy area and the header */
#define FIRST_EXTENDED	 2
#define COMPONENTS	 63

uint32_t uffdb_xsave_size(uint64_t features)
{
	unsigned int size, offset, flags, reserved;
	uint32_t end = XSAVE_HEADER_END;

	for (unsigned int i = FIRST_EXTENDED; i < COMPONENTS; i++) {
		if (!(features >> i & 1))
			continue;
		if (!__get_cpuid_count(XSAVE_LEAF, i, &size, &offset, &flags, &reserved))
			return 0;
		if (offset + size > end)
			end = offset + size;
	}
	return end;
}
#else
uint32_t uffdb_xsave_size(uint64_t features)
{
	(void)features;
	return 0;
}
#endif
