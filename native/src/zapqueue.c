// SPDX-License-Identifier: GPL-2.0-or-later
#include "zapqueue.h"
#include "engine.h"
#include "uffdballoon.h"

bool uffdb_queue_range(struct uffdb_range *ranges, uint32_t *nr, size_t room, uint64_t hva,
		       uint64_t len)
{
	if (*nr && ranges[*nr - 1].start + ranges[*nr - 1].len == hva) {
		ranges[*nr - 1].len += len;
		return true;
	}
	if (*nr == room)
		return false;
	ranges[(*nr)++] = (struct uffdb_range){hva, len};
	return true;
}

bool uffdb_zap_again(struct uffdb_engine *engine, uint64_t hva, uint64_t len)
{
	uint32_t nr = engine->nr_again;
	bool kept = uffdb_queue_range(engine->again, &nr, UFFDB_MAX_AGAIN, hva, len);

	engine->nr_again = nr;
	return kept;
}
