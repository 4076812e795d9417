// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What QEMU's trace backend `log` writes for two events of its balloon device, as 7.2 and 10 do
 * (hw/virtio/trace-events): the event's name, its arguments, and with -msg timestamp=on a
 * `pid@seconds.micros:` in front of them.
 *
 * Where the file was full a line ends anywhere, and the next one goes on in the same line. So the
 * last name counts, and what stands before it was a line, or the rest of one.
 */
#include <string.h>

#include "log_lines.h"
#include "pages.h"

#define LONGEST 4096 /* no line of ours is longer */

static const char PAGE_EVENT[] = "virtio_balloon_handle_output section name: ";
static const char ACTUAL_EVENT[] = "virtio_balloon_set_config actual: ";
static const char GPA[] = " gpa: 0x";
static const char BEFORE[] = " oldactual: ";
/* What all lines of ours have, torn ones among them, as far as they can be told from others. */
static const char OURS[] = "virtio_balloon_";

struct text {
	const char *at, *end;
};

static size_t length(const struct text *text)
{
	return (size_t)(text->end - text->at);
}

static bool skip(struct text *text, const char *word)
{
	size_t len = strlen(word);

	if (length(text) < len || memcmp(text->at, word, len))
		return false;
	text->at += len;
	return true;
}

static const char *last(const struct text *text, const char *word)
{
	size_t len = strlen(word), left = length(text);

	for (; left >= len; left--)
		if (!memcmp(text->at + left - len, word, len))
			return text->at + left - len;
	return NULL;
}

static int digit(char of)
{
	if (of >= '0' && of <= '9')
		return of - '0';
	return of >= 'a' && of <= 'f' ? of - 'a' + 10 : 16;
}

/* The digits that follow, @most of them at most; false without any, or with more. */
static bool take_number(struct text *text, int base, int most, uint64_t *out)
{
	int nr = 0;

	for (*out = 0; text->at < text->end && digit(*text->at) < base; text->at++) {
		if (++nr > most)
			return false;
		*out = *out * (uint64_t)base + (uint64_t)digit(*text->at);
	}
	return nr > 0;
}

/* `%d` of what is an unsigned number. */
static bool take_count(struct text *text, uint32_t *out)
{
	bool negative = skip(text, "-");
	uint64_t number;

	if (!take_number(text, 10, 10, &number))
		return false;
	*out = (uint32_t)(negative ? -number : number);
	return true;
}

/* Is it all of `pid@seconds.micros:`, or nothing? */
static bool is_prefix(struct text text)
{
	uint64_t number;

	if (text.at == text.end)
		return true;
	return take_number(&text, 10, 10, &number) && skip(&text, "@") &&
	       take_number(&text, 10, 20, &number) && skip(&text, ".") &&
	       take_number(&text, 10, 6, &number) && skip(&text, ":") && text.at == text.end;
}

/* The name of the section may hold anything: the address is the last thing in the line. */
static bool read_page(struct text text, struct uffdb_log_line *line)
{
	const char *gpa;

	if (!skip(&text, PAGE_EVENT))
		return false;
	gpa = last(&text, GPA);
	if (!gpa)
		return false;
	text.at = gpa + strlen(GPA);
	line->kind = UFFDB_LOG_PAGE;
	return take_number(&text, 16, 16, &line->gpa) && text.at == text.end &&
	       !(line->gpa % UFFDB_PAGE);
}

static bool read_actual(struct text text, struct uffdb_log_line *line)
{
	if (!skip(&text, ACTUAL_EVENT))
		return false;
	line->kind = UFFDB_LOG_ACTUAL;
	return take_count(&text, &line->pages) && skip(&text, BEFORE) &&
	       take_count(&text, &line->before) && text.at == text.end;
}

/* Does an event of ours begin here, or what is left of its name? */
static bool begins_ours(const struct text *text)
{
	static const char *const names[] = {"virtio_balloon_handle_output ",
					    "virtio_balloon_set_config "};

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		size_t len = strlen(names[i]);

		if (!memcmp(text->at, names[i], length(text) < len ? length(text) : len))
			return true;
	}
	return false;
}

struct uffdb_log_line uffdb_log_line_of(const char *bytes, size_t len)
{
	size_t skipped = len > LONGEST ? len - LONGEST : 0;
	const struct text text = {bytes + skipped, bytes + len};
	struct uffdb_log_line line = {0};
	struct text before = text, event;
	bool broken = false;

	while ((event.at = last(&before, OURS))) {
		event.end = text.end;
		before.end = event.at;
		if (read_page(event, &line) || read_actual(event, &line)) {
			line.torn = skipped || !is_prefix(before);
			return line;
		}
		line = (struct uffdb_log_line){0};
		broken = broken || begins_ours(&event);
	}
	line.kind = broken ? UFFDB_LOG_BROKEN : UFFDB_LOG_FOREIGN;
	return line;
}
