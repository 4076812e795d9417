// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Plays histories of a contract over a ledger, as tests/support/histories.py describes them:
 * from standard input, each its length (two bytes, little-endian) and its bytes. For each it
 * writes one byte a touch, the verdict, and then two bytes: the pages that are ballooned at its
 * end, and those of node 0.
 */
#include <stdio.h>
#include <stdlib.h>

#include "uffdballoon.h"

#define PAGE	    4096ull
#define PAGES	    96u
#define FIRST_PAGES 40u /* of node 0; the others are of node 1 */
#define START	    0x7f0000000000ull
#define HEAD	    6u /* bytes that say the terms; then three a step */

static const struct uffdb_block BLOCKS[] = {
	{.hva = START, .size = FIRST_PAGES * PAGE, .node = 0},
	{.hva = START + FIRST_PAGES * PAGE, .size = (PAGES - FIRST_PAGES) * PAGE, .node = 1},
};

static const uint32_t ROLES[] = {
	UFFDB_ROLE_VCPU,
	UFFDB_ROLE_HOST_READER,
	UFFDB_ROLE_DEVICE_WRITER,
};

struct history {
	struct uffdb_ledger *ledger;
	struct uffdb_contract contract;
	uint64_t now_ns;
};

typedef int64_t change_fn(struct uffdb_ledger *ledger, uint64_t hva, uint64_t len);

/* Change pages [first, last), which may lie in both RAM blocks. */
static void change(struct uffdb_ledger *ledger, change_fn *by, unsigned int first,
		   unsigned int last)
{
	unsigned int cut = first > FIRST_PAGES ? first : FIRST_PAGES;

	cut = cut < last ? cut : last;
	if (first < cut)
		by(ledger, START + first * PAGE, (cut - first) * PAGE);
	if (cut < last)
		by(ledger, START + cut * PAGE, (last - cut) * PAGE);
}

static struct uffdb_terms read_terms(const uint8_t *head)
{
	struct uffdb_terms terms = {.kind = UFFDB_CONTRACT_TOLD};

	if (head[0] % 3 == 0)
		return terms;
	terms.kind = UFFDB_CONTRACT_CAP;
	terms.floor_bytes = head[1] % 40 * PAGE;
	terms.grace_ns = head[2] * 4ull;
	terms.grace_bytes = head[3] % 8 * PAGE;
	terms.node_floors[0] = head[4] % 12 * PAGE;
	terms.node_floors[1] = head[5] % 12 * PAGE;
	return terms;
}

static void touch(struct history *history, unsigned int page, unsigned int role)
{
	uint64_t hva = START + page * PAGE;
	uint32_t node = page >= FIRST_PAGES, verdict;
	const struct uffdb_judged judged = {
		.ballooned_bytes = uffdb_ledger_pages(history->ledger) * PAGE,
		.touched_bytes = uffdb_ledger_test(history->ledger, hva) > 0 ? PAGE : 0,
		.now_ns = history->now_ns,
		.role = ROLES[role],
		.node = node,
		.node_ballooned_bytes = uffdb_ledger_node_pages(history->ledger, node) * PAGE,
	};

	verdict = uffdb_contract_judge(&history->contract, &judged);
	if (verdict == UFFDB_GRANTED)
		uffdb_ledger_clear(history->ledger, hva, PAGE);
	putchar((int)verdict);
}

static void step(struct history *history, const uint8_t *at)
{
	unsigned int page = at[1] % PAGES, more = at[2];
	unsigned int room = PAGES - page < 16 ? PAGES - page : 16;
	unsigned int last = page + 1 + more % room;

	history->now_ns += more;
	switch (at[0] % 8) {
	case 0:
	case 1:
		change(history->ledger, uffdb_ledger_set, page, last);
		break;
	case 2:
		change(history->ledger, uffdb_ledger_clear, page, last);
		break;
	case 3:
		if (more % 4 == 0) {
			change(history->ledger, uffdb_ledger_clear, 0, PAGES);
			uffdb_contract_reset(&history->contract, history->now_ns);
			break;
		}
		/* fall through */
	default:
		touch(history, page, more % 3);
		break;
	}
}

static void play(struct uffdb_ledger *ledger, const uint8_t *bytes, size_t len)
{
	struct history history = {
		.ledger = ledger, .contract.terms = read_terms(bytes), .now_ns = 1};

	change(ledger, uffdb_ledger_clear, 0, PAGES);
	for (size_t at = HEAD; at + 3 <= len; at += 3)
		step(&history, bytes + at);
	putchar((int)uffdb_ledger_pages(ledger));
	putchar((int)uffdb_ledger_node_pages(ledger, 0));
}

int main(void)
{
	struct uffdb_ledger *ledger;
	uint8_t head[2], bytes[UINT16_MAX];

	if (uffdb_ledger_create(BLOCKS, 2, &ledger))
		return 1;
	while (fread(head, 1, sizeof(head), stdin) == sizeof(head)) {
		size_t len = head[0] | (size_t)head[1] << 8;

		if (len < HEAD || fread(bytes, 1, len, stdin) != len)
			return 2;
		play(ledger, bytes, len);
	}
	uffdb_ledger_destroy(ledger);
	return 0;
}
