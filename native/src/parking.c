// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>

#include "parking.h"
#include "touch.h"
#include "uffdballoon.h"

int uffdb_parking_init(struct uffdb_parking *parking)
{
	*parking = (struct uffdb_parking){0};
	parking->held = calloc(UFFDB_MAX_PARKED, sizeof(*parking->held));
	return parking->held ? 0 : -ENOMEM;
}

void uffdb_parking_release(struct uffdb_parking *parking)
{
	free(parking->held);
}

static void resize(struct uffdb_parking *parking, uint32_t nr)
{
	atomic_store_explicit(&parking->nr, nr, memory_order_relaxed);
	parking->changed = true;
}

static bool take_out(struct uffdb_parking *parking, uint32_t index, struct uffdb_held *out)
{
	uint32_t last = uffdb_parking_count(parking) - 1;

	if (out)
		*out = parking->held[index];
	parking->held[index] = parking->held[last];
	resize(parking, last);
	return true;
}

bool uffdb_parking_add(struct uffdb_parking *parking, const struct uffdb_held *held)
{
	uint32_t nr = uffdb_parking_count(parking);

	if (nr == UFFDB_MAX_PARKED)
		return false;
	parking->held[nr] = *held;
	parking->held[nr].id = ++parking->last_id;
	resize(parking, nr + 1);
	return true;
}

bool uffdb_parking_knows(struct uffdb_parking *parking, const struct uffdb_touch *touch)
{
	for (uint32_t i = 0; i < uffdb_parking_count(parking); i++) {
		struct uffdb_touch *held = &parking->held[i].touch;

		if (held->tid != touch->tid)
			continue;
		if ((touch->ballooned || held->lacking_since_ns) && held->hva == touch->hva &&
		    held->write == touch->write) {
			held->protected = touch->protected;
			held->minor = touch->minor;
			return true;
		}
		take_out(parking, i, NULL);
		return false;
	}
	return false;
}

bool uffdb_parking_take_id(struct uffdb_parking *parking, uint64_t id, struct uffdb_held *out)
{
	for (uint32_t i = 0; i < uffdb_parking_count(parking); i++)
		if (parking->held[i].id == id)
			return take_out(parking, i, out);
	return false;
}

bool uffdb_parking_take_in(struct uffdb_parking *parking, uint64_t hva, uint64_t len,
			   struct uffdb_held *out)
{
	for (uint32_t i = 0; i < uffdb_parking_count(parking); i++)
		if (parking->held[i].touch.hva >= hva && parking->held[i].touch.hva < hva + len)
			return take_out(parking, i, out);
	return false;
}

bool uffdb_parking_take_expired(struct uffdb_parking *parking, uint64_t now_ns,
				struct uffdb_held *out)
{
	for (uint32_t i = 0; i < uffdb_parking_count(parking); i++)
		if (parking->held[i].deadline_ns && parking->held[i].deadline_ns <= now_ns)
			return take_out(parking, i, out);
	return false;
}

bool uffdb_parking_take_by(struct uffdb_parking *parking, uint8_t action, uint32_t tid,
			   struct uffdb_held *out)
{
	for (uint32_t i = 0; i < uffdb_parking_count(parking); i++)
		if (parking->held[i].action == action &&
		    (!tid || parking->held[i].touch.tid == tid))
			return take_out(parking, i, out);
	return false;
}

bool uffdb_parking_take_older(struct uffdb_parking *parking, uint8_t action, uint64_t newest,
			      struct uffdb_held *out)
{
	for (uint32_t i = 0; i < uffdb_parking_count(parking); i++)
		if (parking->held[i].action == action && parking->held[i].id <= newest)
			return take_out(parking, i, out);
	return false;
}

uint64_t uffdb_parking_deadline(const struct uffdb_parking *parking)
{
	uint64_t first = 0;

	for (uint32_t i = 0; i < uffdb_parking_count(parking); i++) {
		uint64_t deadline = parking->held[i].deadline_ns;

		if (deadline && (!first || deadline < first))
			first = deadline;
	}
	return first;
}

bool uffdb_parking_take_change(struct uffdb_parking *parking)
{
	bool changed = parking->changed;

	parking->changed = false;
	return changed;
}

size_t uffdb_parking_list(const struct uffdb_parking *parking, struct uffdb_parked *out, size_t nr)
{
	size_t found = uffdb_parking_count(parking);

	if (found > nr)
		found = nr;
	for (size_t i = 0; i < found; i++) {
		const struct uffdb_held *held = &parking->held[i];

		out[i] = (struct uffdb_parked){
			.id = held->id,
			.hva = held->touch.hva,
			.size = held->touch.size,
			.since_ns = held->since_ns,
			.deadline_ns = held->deadline_ns,
			.tid = held->touch.tid,
			.write = held->touch.write,
			.action = held->action,
		};
	}
	return found;
}
