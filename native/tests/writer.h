/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A thread that touches what may hold it. */
#ifndef WRITER_H
#define WRITER_H

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "engine_setup.h"

/* A thread that writes a byte of one page and says when it has. */
struct writer {
	pthread_t thread;
	volatile uint8_t *byte;
	_Atomic uint32_t tid;
	_Atomic bool done;
};

static inline void *write_byte(void *argument)
{
	struct writer *writer = argument;

	atomic_store(&writer->tid, (uint32_t)gettid());
	*writer->byte = 42;
	atomic_store(&writer->done, true);
	return NULL;
}

static inline void start_writing(struct writer *writer, struct setup *setup, uint64_t offset)
{
	*writer = (struct writer){.byte = setup->memory + offset};
	CHECK(!pthread_create(&writer->thread, NULL, write_byte, writer));
}

static inline void wait_until_parked(struct setup *setup, uint64_t count)
{
	while (stats_of(setup).parked != count)
		poll(NULL, 0, 1);
}

static inline void finish(struct writer *writer)
{
	CHECK(!pthread_join(writer->thread, NULL));
	CHECK(writer->done && *writer->byte == 42);
}

#endif
