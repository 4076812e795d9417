// SPDX-License-Identifier: GPL-2.0-or-later
#include <string.h>

#include "lent.h"
#include "pages.h"

#define FIRST_NS 20000000ull
#define STEP_NS	 10000000ull

void uffdb_lent_init(struct uffdb_lent *lent)
{
	struct uffdb_lent_sized *small = &lent->sizes[0], *huge = &lent->sizes[1];

	memset(lent, 0, sizeof(*lent));
	small->page_bytes = UFFDB_PAGE;
	small->most_at_first = 64;
	small->most_again = 192;
	huge->page_bytes = UFFDB_HUGE;
	huge->most_at_first = 1;
	huge->most_again = 4;
}

static struct uffdb_lent_page *past_of(struct uffdb_lent_sized *sized, uint64_t hva)
{
	return &sized->past[hva / sized->page_bytes % UFFDB_LENT_PAST];
}

static uint32_t term_of(struct uffdb_lent_sized *sized, uint64_t hva, uint64_t now_ns)
{
	const struct uffdb_lent_page *past = past_of(sized, hva);

	if (past->hva != hva || now_ns >= past->until_ns)
		return 0;
	return past->term + 1 < UFFDB_LENT_TERMS ? past->term + 1 : past->term;
}

bool uffdb_lent_was_told(const struct uffdb_lent *lent, uint64_t hva, uint64_t size, uint64_t epoch)
{
	const struct uffdb_lent_sized *sized = &lent->sizes[size != UFFDB_PAGE];
	const struct uffdb_lent_page *past =
		&sized->past[hva / sized->page_bytes % UFFDB_LENT_PAST];

	return past->hva == hva && past->told == epoch;
}

bool uffdb_lent_add(struct uffdb_lent *lent, uint64_t hva, uint64_t size, uint64_t now_ns,
		    uint64_t told)
{
	struct uffdb_lent_sized *sized = &lent->sizes[size != UFFDB_PAGE];
	uint32_t term = term_of(sized, hva, now_ns);
	struct uffdb_lent_queue *queue = &sized->queues[term];

	if (queue->end - queue->first == UFFDB_LENT_ROOM)
		return false;
	queue->pages[queue->end++ % UFFDB_LENT_ROOM] =
		(struct uffdb_lent_page){hva, now_ns + (FIRST_NS << term), told, term};
	lent->nr++;
	return true;
}

/* Half of those that are too many go at once: neighbours, in one call. */
static bool is_crowded(struct uffdb_lent_queue *queue, uint32_t most)
{
	uint64_t nr = queue->end - queue->first;

	if (nr > most)
		queue->crowded = true;
	else if (nr <= (most + 1) / 2)
		queue->crowded = false;
	return queue->crowded;
}

static bool take_from(struct uffdb_lent_sized *sized, uint32_t term, uint64_t now_ns, uint64_t *hva)
{
	struct uffdb_lent_queue *queue = &sized->queues[term];
	const struct uffdb_lent_page *page = &queue->pages[queue->first % UFFDB_LENT_ROOM];
	bool crowded = is_crowded(queue, term ? sized->most_again : sized->most_at_first);

	if (queue->first == queue->end || (!crowded && now_ns < page->until_ns))
		return false;
	*hva = page->hva;
	*past_of(sized, page->hva) =
		(struct uffdb_lent_page){page->hva, now_ns + (FIRST_NS << term), page->told, term};
	queue->first++;
	return true;
}

bool uffdb_lent_take(struct uffdb_lent *lent, uint64_t now_ns, uint64_t *hva, uint64_t *size)
{
	for (uint32_t i = 0; lent->nr && i < 2; i++)
		for (uint32_t term = 0; term < UFFDB_LENT_TERMS; term++)
			if (take_from(&lent->sizes[i], term, now_ns, hva)) {
				*size = lent->sizes[i].page_bytes;
				lent->nr--;
				return true;
			}
	return false;
}

uint64_t uffdb_lent_deadline(const struct uffdb_lent *lent)
{
	uint64_t first_ns = 0;

	for (uint32_t i = 0; lent->nr && i < 2; i++)
		for (uint32_t term = 0; term < UFFDB_LENT_TERMS; term++) {
			const struct uffdb_lent_queue *queue = &lent->sizes[i].queues[term];
			uint64_t until_ns = queue->pages[queue->first % UFFDB_LENT_ROOM].until_ns;

			if (queue->first != queue->end && (!first_ns || until_ns < first_ns))
				first_ns = until_ns;
		}
	return (first_ns + STEP_NS - 1) / STEP_NS * STEP_NS;
}
