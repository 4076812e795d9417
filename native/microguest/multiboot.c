// SPDX-License-Identifier: GPL-2.0-or-later
/* The memory map that QEMU's loader hands over (Multiboot specification 0.6.96, 3.3). */
#include "multiboot.h"
#include "answer.h"

enum {
	FLAG_MEMORY_MAP = 1 << 6,
	TYPE_RAM = 1,
	STRETCHES = 16
};

struct multiboot_info {
	uint32_t flags, unused[10], map_bytes, map;
};

struct entry {
	uint32_t size; /* of what follows */
	uint64_t start, bytes;
	uint32_t type;
} __attribute__((packed));

static struct {
	uint64_t start, end;
} ram[STRETCHES];
static int stretches;

void multiboot_init(const struct multiboot_info *info)
{
	const uint32_t end = info->map + info->map_bytes;

	if (!(info->flags & FLAG_MEMORY_MAP))
		return;
	for (uint32_t at = info->map; at < end;) {
		const struct entry *const entry = (const struct entry *)(uintptr_t)at;

		if (entry->type == TYPE_RAM && stretches < STRETCHES) {
			ram[stretches].start = entry->start;
			ram[stretches++].end = entry->start + entry->bytes;
		}
		at += entry->size + sizeof(entry->size);
	}
}

void multiboot_answer_ram(void)
{
	for (int i = 0; i < stretches; i++)
		answer_range("ram", ram[i].start, ram[i].end);
}
