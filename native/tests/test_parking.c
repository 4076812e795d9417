// SPDX-License-Identifier: GPL-2.0-or-later
/* The table of who is held, against the plainest one there could be. */
#include <stdlib.h>
#include <string.h>

#include "../src/pages.h"
#include "../src/parking.h"
#include "check.h"

static struct uffdb_parking parking;

static void begin(void)
{
	CHECK(!uffdb_parking_init(&parking));
}

static void end(void)
{
	uffdb_parking_release(&parking);
}

static struct uffdb_held held_by(uint32_t tid, uint64_t page)
{
	return (struct uffdb_held){
		.touch = {.tid = tid,
			  .hva = page * UFFDB_PAGE,
			  .size = UFFDB_PAGE,
			  .write = true,
			  .ballooned = true},
		.action = UFFDB_ACTION_FREEZE,
	};
}

static void hold(uint32_t tid, uint64_t page, uint64_t deadline_ns)
{
	struct uffdb_held held = held_by(tid, page);

	held.deadline_ns = deadline_ns;
	CHECK(uffdb_parking_add(&parking, &held));
}

static void each_has_an_id_of_its_own_by_which_it_is_taken_once(void)
{
	struct uffdb_parked listed[3];
	struct uffdb_held out;

	begin();
	hold(1, 10, 0);
	hold(2, 20, 0);
	CHECK(uffdb_parking_list(&parking, listed, 3) == 2 && listed[0].id != listed[1].id);
	CHECK(uffdb_parking_list(&parking, listed, 1) == 1);
	CHECK(uffdb_parking_take_id(&parking, listed[0].id, &out) && out.id == listed[0].id);
	CHECK(!uffdb_parking_take_id(&parking, listed[0].id, &out));
	CHECK(uffdb_parking_count(&parking) == 1);
	hold(3, 30, 0);
	CHECK(uffdb_parking_list(&parking, listed, 3) == 2 && listed[1].id > out.id);
	end();
}

static void a_full_table_takes_no_more(void)
{
	struct uffdb_held held = held_by(1, 1);

	begin();
	for (uint32_t tid = 0; tid < UFFDB_MAX_PARKED; tid++)
		CHECK(uffdb_parking_add(&parking, &held));
	CHECK(!uffdb_parking_add(&parking, &held));
	CHECK(uffdb_parking_take_in(&parking, 0, 2 * UFFDB_PAGE, NULL));
	CHECK(uffdb_parking_add(&parking, &held));
	end();
}

static void a_thread_that_faults_again_at_its_page_stays_held(void)
{
	struct uffdb_touch again = held_by(1, 10).touch, other = held_by(1, 11).touch;
	struct uffdb_held out;

	begin();
	hold(1, 10, 0);
	again.protected = true;
	CHECK(uffdb_parking_knows(&parking, &again) && uffdb_parking_count(&parking) == 1);
	again.tid = 2;
	CHECK(!uffdb_parking_knows(&parking, &again) && uffdb_parking_count(&parking) == 1);
	CHECK(uffdb_parking_take_by(&parking, UFFDB_ACTION_FREEZE, 1, &out));
	CHECK(out.touch.protected); /* as it is by now */
	hold(1, 10, 0);
	CHECK(!uffdb_parking_knows(&parking, &other) && !uffdb_parking_count(&parking));
	end();
}

static void a_page_that_is_owned_by_now_holds_nobody_but_for_want_of_memory(void)
{
	struct uffdb_held held = held_by(1, 10);
	struct uffdb_touch again = held.touch;

	begin();
	again.ballooned = false;
	hold(1, 10, 0);
	CHECK(!uffdb_parking_knows(&parking, &again));
	held.touch.lacking_since_ns = 1;
	CHECK(uffdb_parking_add(&parking, &held));
	CHECK(uffdb_parking_knows(&parking, &again));
	end();
}

static void those_whose_time_has_come_are_taken_and_no_others(void)
{
	struct uffdb_held out;

	begin();
	CHECK(uffdb_parking_deadline(&parking) == 0);
	hold(1, 1, 0);
	CHECK(uffdb_parking_deadline(&parking) == 0);
	hold(2, 2, 30);
	hold(3, 3, 20);
	CHECK(uffdb_parking_deadline(&parking) == 20);
	CHECK(!uffdb_parking_take_expired(&parking, 19, &out));
	CHECK(uffdb_parking_take_expired(&parking, 20, &out) && out.touch.tid == 3);
	CHECK(uffdb_parking_deadline(&parking) == 30);
	CHECK(uffdb_parking_take_expired(&parking, 99, &out) && out.touch.tid == 2);
	CHECK(!uffdb_parking_take_expired(&parking, UINT64_MAX, &out));
	end();
}

static void a_thread_or_an_action_is_what_is_asked_for(void)
{
	struct uffdb_held paused = held_by(5, 5), out;

	begin();
	paused.action = UFFDB_ACTION_PAUSE;
	CHECK(uffdb_parking_add(&parking, &paused));
	hold(6, 6, 0);
	hold(7, 7, 0);
	CHECK(!uffdb_parking_take_by(&parking, UFFDB_ACTION_FREEZE, 5, &out));
	CHECK(uffdb_parking_take_by(&parking, UFFDB_ACTION_FREEZE, 7, &out) && out.touch.tid == 7);
	CHECK(uffdb_parking_take_by(&parking, UFFDB_ACTION_FREEZE, 0, &out) && out.touch.tid == 6);
	CHECK(!uffdb_parking_take_by(&parking, UFFDB_ACTION_FREEZE, 0, &out));
	CHECK(uffdb_parking_count(&parking) == 1);
	end();
}

static void what_is_held_anew_is_not_older_than_itself(void)
{
	struct uffdb_held out;
	uint64_t newest;

	begin();
	hold(1, 1, 0);
	hold(2, 2, 0);
	newest = parking.last_id;
	for (int i = 0; i < 2; i++) {
		CHECK(uffdb_parking_take_older(&parking, UFFDB_ACTION_FREEZE, newest, &out));
		CHECK(uffdb_parking_add(&parking, &out));
	}
	CHECK(!uffdb_parking_take_older(&parking, UFFDB_ACTION_FREEZE, newest, &out));
	CHECK(!uffdb_parking_take_older(&parking, UFFDB_ACTION_THROTTLE, parking.last_id, &out));
	CHECK(uffdb_parking_count(&parking) == 2);
	end();
}

static void every_change_is_told_once(void)
{
	begin();
	CHECK(!uffdb_parking_take_change(&parking));
	hold(1, 1, 0);
	CHECK(uffdb_parking_take_change(&parking) && !uffdb_parking_take_change(&parking));
	CHECK(!uffdb_parking_take_in(&parking, 0, UFFDB_PAGE, NULL));
	CHECK(!uffdb_parking_take_change(&parking));
	CHECK(uffdb_parking_take_in(&parking, UFFDB_PAGE, UFFDB_PAGE, NULL));
	CHECK(uffdb_parking_take_change(&parking));
	end();
}

/* A thread and its page, or nothing: as plain as can be. */
static void it_does_what_an_array_by_thread_does(void)
{
	uint64_t pages[32] = {0}; /* that each thread is held at; 0: none */
	uint32_t count = 0;

	begin();
	srand(1);
	for (int step = 0; step < 100000; step++) {
		uint32_t tid = 1 + (uint32_t)rand() % 31;
		uint64_t page = 1 + (uint64_t)rand() % 8;
		struct uffdb_touch touch = held_by(tid, page).touch;

		if (rand() % 4) {
			bool known = uffdb_parking_knows(&parking, &touch);

			CHECK(known == (pages[tid] == page));
			count += !known && !pages[tid];
			pages[tid] = page;
			if (!known)
				hold(tid, page, 0);
		} else {
			while (uffdb_parking_take_in(&parking, touch.hva, UFFDB_PAGE, NULL))
				;
			for (tid = 1; tid < 32; tid++) {
				count -= pages[tid] == page;
				pages[tid] = pages[tid] == page ? 0 : pages[tid];
			}
		}
		CHECK(uffdb_parking_count(&parking) == count);
	}
	end();
}

int main(void)
{
	each_has_an_id_of_its_own_by_which_it_is_taken_once();
	a_full_table_takes_no_more();
	a_thread_that_faults_again_at_its_page_stays_held();
	a_page_that_is_owned_by_now_holds_nobody_but_for_want_of_memory();
	those_whose_time_has_come_are_taken_and_no_others();
	a_thread_or_an_action_is_what_is_asked_for();
	what_is_held_anew_is_not_older_than_itself();
	every_change_is_told_once();
	it_does_what_an_array_by_thread_does();
	return 0;
}
