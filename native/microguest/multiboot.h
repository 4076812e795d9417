/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MICROGUEST_MULTIBOOT_H
#define MICROGUEST_MULTIBOOT_H

struct multiboot_info;

/* Keep what the loader said of memory. */
void multiboot_init(const struct multiboot_info *info);

/* Add each stretch of RAM to the answer. */
void multiboot_answer_ram(void);

#endif
