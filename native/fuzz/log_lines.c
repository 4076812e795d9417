// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Any bytes as a line of QEMU's log. Built with libFuzzer by `make fuzz`; the C tests run the same
 * function on what a seeded generator makes of pieces of lines.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log_lines.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "not so: %s\n", what);
	abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *bytes = malloc(size + !size); /* its own allocation: reading beyond is seen */
	struct uffdb_log_line line, whole;
	char text[128];

	if (!bytes)
		return 0;
	if (size)
		memcpy(bytes, data, size);
	line = uffdb_log_line_of(bytes, size);
	free(bytes);
	expect(line.kind <= UFFDB_LOG_BROKEN, "the kind is one of ours");
	if (line.kind == UFFDB_LOG_PAGE)
		snprintf(text, sizeof(text),
			 "virtio_balloon_handle_output section name: x gpa: 0x%llx",
			 (unsigned long long)line.gpa);
	else if (line.kind == UFFDB_LOG_ACTUAL)
		snprintf(text, sizeof(text), "virtio_balloon_set_config actual: %d oldactual: %d",
			 (int)line.pages, (int)line.before);
	else
		return 0;
	whole = uffdb_log_line_of(text, strlen(text));
	expect(!whole.torn && whole.kind == line.kind && whole.gpa == line.gpa &&
		       whole.pages == line.pages && whole.before == line.before,
	       "what was read is what QEMU writes of it");
	return 0;
}
