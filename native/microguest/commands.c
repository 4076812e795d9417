// SPDX-License-Identifier: GPL-2.0-or-later
/* What README.md says of each command; the names and arguments are in the table at the end. */
#include <stddef.h>

#include "answer.h"
#include "balloon.h"
#include "commands.h"
#include "cycles.h"
#include "io.h"
#include "memory.h"
#include "multiboot.h"
#include "paging.h"
#include "race.h"
#include "second.h"
#include "smp.h"
#include "traps.h"

enum {
	ARGUMENTS_MAX = 5,
	PAGE_BYTES = 4096
};

struct arguments {
	int count;
	uint64_t at[ARGUMENTS_MAX];
};

/* Return: NULL when it has answered, else why it refuses. */
typedef const char *command_fn(const struct arguments *arguments);

static const char own_memory[] = "below 0x200000 the guest keeps itself";

static const char *ok(void)
{
	answer_begin("ok");
	answer_end();
	return NULL;
}

/* The stretch that starts at argument 0; its stride is argument @stride where there is one. */
static const char *read_span(const struct arguments *arguments, int stride, uint32_t unit,
			     struct memory_span *span)
{
	span->gpa = arguments->at[0];
	span->size = arguments->at[1];
	span->stride = arguments->count > stride ? arguments->at[stride] : unit;
	if (!span->size || span->gpa + span->size < span->gpa)
		return "the size is 0, or leaves the address space";
	if (!span->stride)
		return "the stride is 0";
	if ((span->gpa | span->size | span->stride) & (unit - 1))
		return unit == MEMORY_LINE_BYTES ? "not a multiple of 0x40" : "not a multiple of 4";
	return NULL;
}

static const char *run_ping(const struct arguments *arguments)
{
	answer_begin("ok pong");
	if (arguments->count)
		answer_hex("token", arguments->at[0]);
	answer_end();
	return NULL;
}

static const char *run_read(const struct arguments *arguments)
{
	uint32_t value;

	if (arguments->at[0] & 3)
		return "not a multiple of 4";
	value = memory_read(arguments->at[0]);
	answer_begin("ok");
	answer_hex("value", value);
	answer_end();
	return NULL;
}

static const char *run_write(const struct arguments *arguments)
{
	if (arguments->at[0] & 3)
		return "not a multiple of 4";
	if (arguments->at[0] < PAGING_OWN_END)
		return own_memory;
	if (arguments->at[1] > UINT32_MAX)
		return "the value has more than 32 bits";
	memory_write(arguments->at[0], (uint32_t)arguments->at[1]);
	return ok();
}

static const char *run_fill(const struct arguments *arguments)
{
	struct memory_span span;
	const char *const refusal = read_span(arguments, 3, MEMORY_LINE_BYTES, &span);

	if (refusal)
		return refusal;
	if (span.gpa < PAGING_OWN_END)
		return own_memory;
	memory_fill(&span, (uint32_t)arguments->at[2]);
	return ok();
}

static void answer_check(const struct memory_check *check)
{
	answer_hex("bad", check->bad);
	if (check->bad)
		answer_hex("first", check->first_bad_gpa);
}

static const char *run_verify(const struct arguments *arguments)
{
	struct memory_span span;
	struct memory_check check;
	const char *const refusal = read_span(arguments, 3, MEMORY_LINE_BYTES, &span);

	if (refusal)
		return refusal;
	memory_verify(&span, (uint32_t)arguments->at[2], &check);
	answer_begin("ok");
	answer_check(&check);
	answer_end();
	return NULL;
}

static const char *run_checksum(const struct arguments *arguments)
{
	struct memory_span span;
	uint64_t sum;
	const char *const refusal = read_span(arguments, 2, MEMORY_LINE_BYTES, &span);

	if (refusal)
		return refusal;
	sum = memory_checksum(&span);
	answer_begin("ok");
	answer_hex("sum", sum);
	answer_end();
	return NULL;
}

/* The stretch and the access of all commands that touch: GPA SIZE STRIDE r|w. */
static const char *read_touch(const struct arguments *arguments, uint32_t unit,
			      struct memory_span *span, bool *write)
{
	const char *const refusal = read_span(arguments, 2, unit, span);

	if (refusal)
		return refusal;
	*write = arguments->at[3];
	return *write && span->gpa < PAGING_OWN_END ? own_memory : NULL;
}

static const char *read_record(const struct arguments *arguments, uint64_t *gpa)
{
	*gpa = arguments->count > 4 ? arguments->at[4] : 0;
	if (arguments->count > 4 && *gpa < PAGING_OWN_END)
		return own_memory;
	return *gpa & 3 ? "not a multiple of 4" : NULL;
}

static const char *answer_touch(const struct memory_touch *touch)
{
	answer_begin("ok");
	cycles_answer(touch);
	answer_end();
	return NULL;
}

static const char *run_touch(const struct arguments *arguments)
{
	struct memory_span span;
	struct memory_touch touch;
	uint64_t record_gpa;
	bool write;
	const char *refusal = read_touch(arguments, sizeof(uint32_t), &span, &write);

	if (!refusal)
		refusal = read_record(arguments, &record_gpa);
	if (refusal)
		return refusal;
	memory_touch(&span, write, record_gpa, &touch);
	return answer_touch(&touch);
}

static const char *answer_second_exception(const struct traps_exception *exception)
{
	traps_answer(" on the second processor", exception);
	return NULL;
}

static const char *begin_on_second(const struct arguments *arguments)
{
	struct memory_span span;
	bool write;
	const char *const refusal = read_touch(arguments, sizeof(uint32_t), &span, &write);

	return refusal ? refusal : second_begin(&span, write);
}

static const char *run_ap_start(const struct arguments *arguments)
{
	const char *const refusal = begin_on_second(arguments);

	return refusal ? refusal : ok();
}

static const char *run_ap_state(const struct arguments *arguments)
{
	const bool busy = smp_busy(); /* before the count: an end in between is seen next time */

	(void)arguments;
	answer_begin("ok");
	answer_hex("busy", busy);
	answer_hex("done", second_done());
	answer_end();
	return NULL;
}

static const char *run_ap_wait(const struct arguments *arguments)
{
	struct memory_touch touch;
	const struct traps_exception *const exception = second_wait(&touch);

	(void)arguments;
	if (exception)
		return answer_second_exception(exception);
	return touch.count ? answer_touch(&touch)
			   : "the second processor was given nothing to touch";
}

static const char *run_ap_touch(const struct arguments *arguments)
{
	const char *const refusal = begin_on_second(arguments);

	return refusal ? refusal : run_ap_wait(arguments);
}

static const char *run_race(const struct arguments *arguments)
{
	struct memory_span span;
	struct race_result result;
	const struct traps_exception *exception;
	bool write;
	const char *refusal = read_touch(arguments, MEMORY_LINE_BYTES, &span, &write);

	if (!refusal)
		refusal = race_run(&span, write, &result, &exception);
	if (refusal)
		return refusal;
	if (exception)
		return answer_second_exception(exception);
	answer_begin("ok");
	answer_hex("count", result.count);
	answer_check(&result.check);
	answer_end();
	return NULL;
}

static const char *run_interrupts_on(const struct arguments *arguments)
{
	(void)arguments;
	traps_set_interrupts(true);
	return ok();
}

static const char *run_interrupts_off(const struct arguments *arguments)
{
	(void)arguments;
	traps_set_interrupts(false);
	return ok();
}

static const char no_balloon[] = "there is no legacy virtio-balloon device";

static const char *run_balloon_info(const struct arguments *arguments)
{
	struct balloon_state state;

	(void)arguments;
	if (balloon_read_state(&state))
		return no_balloon;
	answer_begin("ok");
	answer_hex("features", state.features);
	answer_hex("entries", state.queue_entries);
	answer_hex("target", state.target_pages);
	answer_hex("actual", state.actual_pages);
	answer_end();
	return NULL;
}

static const char *change_balloon(enum balloon_queue queue, const struct arguments *arguments)
{
	const uint64_t stride = arguments->count > 2 ? arguments->at[2] : PAGE_BYTES;
	const uint64_t together = arguments->count > 3 ? arguments->at[3] : BALLOON_TOGETHER;

	if ((arguments->at[0] | stride) & (PAGE_BYTES - 1))
		return "not a multiple of 0x1000";
	if (arguments->at[0] < PAGING_OWN_END)
		return own_memory;
	if (balloon_change(queue, arguments->at[0], arguments->at[1], stride, together))
		return no_balloon;
	return run_balloon_info(arguments);
}

static const char *run_balloon_inflate(const struct arguments *arguments)
{
	return change_balloon(BALLOON_INFLATE, arguments);
}

static const char *run_balloon_deflate(const struct arguments *arguments)
{
	return change_balloon(BALLOON_DEFLATE, arguments);
}

static const char *run_mem(const struct arguments *arguments)
{
	(void)arguments;
	answer_begin("ok");
	multiboot_answer_ram();
	answer_end();
	return NULL;
}

static const char *run_halt(const struct arguments *arguments)
{
	(void)arguments;
	ok();
	halt();
}

/* The keyboard controller's reset line. */
static const char *run_reset(const struct arguments *arguments)
{
	(void)arguments;
	ok();
	out8(0x64, 0xfe);
	halt();
}

/* ACPI's S5 at the port where SeaBIOS puts it. */
static const char *run_poweroff(const struct arguments *arguments)
{
	(void)arguments;
	ok();
	out16(0x604, 0x2000);
	halt();
}

/*
 * @verb:      second word of the command, or NULL
 * @arguments: `n` for each number, `a` for r or w; what follows a `?` may be left out
 */
static const struct command {
	const char *name, *verb, *arguments;
	command_fn *run;
} commands[] = {
	/* clang-format off: one to a line */
	{"ping", NULL, "?n", run_ping},
	{"read", NULL, "n", run_read},
	{"write", NULL, "nn", run_write},
	{"fill", NULL, "nnn?n", run_fill},
	{"verify", NULL, "nnn?n", run_verify},
	{"checksum", NULL, "nn?n", run_checksum},
	{"touch", NULL, "nnna?n", run_touch},
	{"ap", "touch", "nnna", run_ap_touch},
	{"ap", "start", "nnna", run_ap_start},
	{"ap", "state", "", run_ap_state},
	{"ap", "wait", "", run_ap_wait},
	{"race", NULL, "nnna", run_race},
	{"interrupts", "on", "", run_interrupts_on},
	{"interrupts", "off", "", run_interrupts_off},
	{"balloon", "info", "", run_balloon_info},
	{"balloon", "target", "", run_balloon_info},
	{"balloon", "inflate", "nn?nn", run_balloon_inflate},
	{"balloon", "deflate", "nn?nn", run_balloon_deflate},
	{"mem", NULL, "", run_mem},
	{"halt", NULL, "", run_halt},
	{"reset", NULL, "", run_reset},
	{"poweroff", NULL, "", run_poweroff},
	/* clang-format on */
};

static bool read_argument(char kind, const char *word, uint64_t *value)
{
	if (kind == 'n')
		return words_hex(word, value);
	*value = words_same(word, "w");
	return *value || words_same(word, "r");
}

static bool read_arguments(const char *kinds, const struct words *words, int first,
			   struct arguments *arguments)
{
	bool optional = false;

	arguments->count = 0;
	for (; *kinds; kinds++) {
		if (*kinds == '?') {
			optional = true;
			continue;
		}
		if (first == words->count)
			return optional;
		if (!read_argument(*kinds, words->at[first++], &arguments->at[arguments->count++]))
			return false;
	}
	return first == words->count;
}

static const struct command *find(const struct words *words)
{
	for (uint32_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		const struct command *const command = &commands[i];

		if (!words_same(command->name, words->at[0]))
			continue;
		if (!command->verb || (words->count > 1 && words_same(command->verb, words->at[1])))
			return command;
	}
	return NULL;
}

void commands_refuse(const char *why)
{
	answer_begin("err ");
	answer_words(why);
	answer_end();
}

void commands_run(const struct words *words)
{
	const struct command *const command = find(words);
	struct arguments arguments;
	const char *refusal;

	if (!command)
		refusal = "no such command";
	else if (!read_arguments(command->arguments, words, command->verb ? 2 : 1, &arguments))
		refusal = "these are not its arguments";
	else
		refusal = command->run(&arguments);
	if (refusal)
		commands_refuse(refusal);
}
