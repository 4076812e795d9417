/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Lines of QEMU's log, read: pure, of any bytes, whatever they say. */
#ifndef UFFDB_LOG_LINES_H
#define UFFDB_LOG_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum uffdb_log_kind {
	UFFDB_LOG_FOREIGN, /* another event's, or something else that is logged */
	UFFDB_LOG_PAGE,	   /* virtio_balloon_handle_output: @gpa was given up, or taken back */
	UFFDB_LOG_ACTUAL,  /* virtio_balloon_set_config: @pages are in the balloon, after @before */
	UFFDB_LOG_BROKEN,  /* one of these, but a part of it is missing */
};

struct uffdb_log_line {
	uint32_t kind;
	bool torn; /* another line began before it, and its end is missing */
	uint64_t gpa;
	uint32_t pages, before;
};

/* @text: @len bytes without the newline. */
struct uffdb_log_line uffdb_log_line_of(const char *text, size_t len);

#endif
