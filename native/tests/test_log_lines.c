// SPDX-License-Identifier: GPL-2.0-or-later
/* What QEMU logs, line by line. */
#include <inttypes.h>
#include <stdint.h>
#include <string.h>

#include "check.h"
#include "log_lines.h"

#define PAGE_LINE   "virtio_balloon_handle_output section name: "
#define ACTUAL_LINE "virtio_balloon_set_config actual: "
#define INPUTS	    200000
#define MOST	    10000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct uffdb_log_line read_line(const char *text)
{
	return uffdb_log_line_of(text, strlen(text));
}

static void expect_page(const char *text, uint64_t gpa, bool torn)
{
	struct uffdb_log_line line = read_line(text);

	CHECK(line.kind == UFFDB_LOG_PAGE && line.gpa == gpa && line.torn == torn);
}

static void expect_kind(const char *text, uint32_t kind)
{
	struct uffdb_log_line line = read_line(text);

	CHECK(line.kind == kind && !line.torn);
}

static void pages_are_read(void)
{
	expect_page(PAGE_LINE "pc.ram gpa: 0x3f000", 0x3f000, false);
	expect_page(PAGE_LINE "/objects/ram0 gpa: 0x123456789000", 0x123456789000, false);
	expect_page(PAGE_LINE " gpa: 0x0", 0, false);
	expect_page(PAGE_LINE "a name gpa: 0x1000 gpa: 0x2000", 0x2000, false);
	expect_page("4242@1700000000.000123:" PAGE_LINE "pc.ram gpa: 0x1000", 0x1000, false);
	expect_page(PAGE_LINE "virtio_balloon_ram gpa: 0x1000", 0x1000, false);
}

static void counts_are_read(void)
{
	struct uffdb_log_line line = read_line(ACTUAL_LINE "512 oldactual: 256");

	CHECK(line.kind == UFFDB_LOG_ACTUAL && line.pages == 512 && line.before == 256);
	line = read_line("7@1.000001:" ACTUAL_LINE "0 oldactual: -2");
	CHECK(line.kind == UFFDB_LOG_ACTUAL && line.pages == 0 && line.before == UINT32_MAX - 1);
	CHECK(!line.torn);
}

static void other_lines_are_passed_over(void)
{
	expect_kind("", UFFDB_LOG_FOREIGN);
	expect_kind("qemu-system-x86_64: warning: something", UFFDB_LOG_FOREIGN);
	expect_kind("virtio_balloon_get_config num_pages: 5 actual: 3", UFFDB_LOG_FOREIGN);
	expect_kind("7@1.000001:virtio_balloon_to_target balloon target: 0x1000 num_pages: 5",
		    UFFDB_LOG_FOREIGN);
	expect_kind("virtio_set_status vdev 0x55 val 15", UFFDB_LOG_FOREIGN);
}

/* As after the file was full: the end of a line is missing, or its beginning, or both. */
static void what_is_torn_is_told(void)
{
	const char *const broken[] = {
		PAGE_LINE "pc.ram gpa: 0x",
		PAGE_LINE "pc.ram gpa: 0x1001",
		PAGE_LINE "pc.ram gpa: 0x1000 ",
		PAGE_LINE "pc.ram gpa: 0x11112222333344445",
		PAGE_LINE "pc.r",
		PAGE_LINE "pc.ram gpa: 0x1000virtio_balloon_get_config num_pages: 5 actual: 3",
		ACTUAL_LINE "512",
		ACTUAL_LINE "99999999999 oldactual: 3",
		"virtio_balloon_handle_out",
		"virtio_balloon_",
	};

	for (size_t i = 0; i < sizeof(broken) / sizeof(*broken); i++)
		expect_kind(broken[i], UFFDB_LOG_BROKEN);
	expect_page(PAGE_LINE "pc.r" PAGE_LINE "pc.ram gpa: 0x1000", 0x1000, true);
	expect_page(PAGE_LINE "pc.ram gpa: 0x1" PAGE_LINE "pc.ram gpa: 0x2000", 0x2000, true);
	expect_page("virtio_ball7@1.000001:" PAGE_LINE "pc.ram gpa: 0x2000", 0x2000, true);
	expect_page("7@1.0:" ACTUAL_LINE "5" PAGE_LINE "pc.ram gpa: 0x2000", 0x2000, true);
	CHECK(read_line(PAGE_LINE "x" ACTUAL_LINE "5 oldactual: 4").torn);
}

static void the_end_of_a_long_line_is_read(void)
{
	static const char page[] = PAGE_LINE "pc.ram gpa: 0x1000";
	static char text[MOST + sizeof(page)];

	memset(text, 0, MOST);
	memcpy(text + MOST, page, sizeof(page));
	struct uffdb_log_line line = uffdb_log_line_of(text, MOST + sizeof(page) - 1);

	CHECK(line.kind == UFFDB_LOG_PAGE && line.gpa == 0x1000 && line.torn);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* What `make fuzz` does at length: pieces of lines, with some bytes of chance in them. */
static void no_bytes_lead_astray(void)
{
	static const char *const pieces[] = {
		"virtio_balloon_", PAGE_LINE,	  ACTUAL_LINE, "pc.ram",
		" gpa: 0x",	   "1000",	  "\n",	       "-5",
		" oldactual: ",	   "3@2.000001:", "4096"};
	uint64_t state = 20240229;
	uint8_t input[512];

	for (int i = 0; i < INPUTS; i++) {
		size_t size = 0;

		for (;;) {
			const char *piece =
				pieces[next_random(&state) % (sizeof(pieces) / sizeof(*pieces))];

			if (size + strlen(piece) > sizeof(input) || !(next_random(&state) % 8))
				break;
			memcpy(input + size, piece, strlen(piece));
			size += strlen(piece);
		}
		for (uint64_t changes = next_random(&state) % 4; size && changes; changes--)
			input[next_random(&state) % size] = (uint8_t)next_random(&state);
		LLVMFuzzerTestOneInput(input, size);
	}
}

int main(void)
{
	pages_are_read();
	counts_are_read();
	other_lines_are_passed_over();
	what_is_torn_is_told();
	the_end_of_a_long_line_is_read();
	no_bytes_lead_astray();
	return 0;
}
