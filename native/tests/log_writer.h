/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A file that is written to as QEMU writes its log: a line a write(2), by a path. */
#ifndef LOG_WRITER_H
#define LOG_WRITER_H

#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "engine_setup.h"

#define RAM_GPA 0x100000000ull

struct log_file {
	int fd;	    /* the manager's */
	int writer; /* QEMU's */
	uint64_t actual;
};

static inline int open_writer(int fd)
{
	char path[64];
	int writer;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", getpid(), fd);
	writer = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	CHECK(writer >= 0);
	return writer;
}

static inline struct log_file make_log(void)
{
	struct log_file log = {.fd = memfd_create("log", MFD_CLOEXEC)};

	CHECK(log.fd >= 0);
	log.writer = open_writer(log.fd);
	return log;
}

static inline struct log_file make_small_log(uint64_t size)
{
	struct log_file log = {.fd = uffdb_bounded_file_open("log", size)};

	if (log.fd == -EPERM) {
		fprintf(stderr, "no tmpfs can be made here\n");
		exit(SKIPPED);
	}
	CHECK(log.fd >= 0);
	log.writer = open_writer(log.fd);
	return log;
}

static inline void end_log(struct log_file *log)
{
	close(log->writer);
	close(log->fd);
}

/* Return whether all of it was written. */
static inline bool write_text(struct log_file *log, const char *text)
{
	size_t len = strlen(text);

	return write(log->writer, text, len) == (ssize_t)len;
}

__attribute__((format(printf, 2, 3))) static inline bool write_line(struct log_file *log,
								    const char *format, ...)
{
	char line[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	return write_text(log, line);
}

static inline bool log_page(struct log_file *log, uint64_t page)
{
	return write_line(log, "virtio_balloon_handle_output section name: pc.ram gpa: 0x%llx\n",
			  RAM_GPA + page * PAGE);
}

static inline void log_actual(struct log_file *log, uint64_t actual)
{
	CHECK(write_line(log,
			 "virtio_balloon_set_config actual: %" PRIu64 " oldactual: %" PRIu64 "\n",
			 actual, log->actual));
	log->actual = actual;
}

static inline struct uffdb_trace *read_log(const struct log_file *log, uint64_t hva, uint64_t len)
{
	const struct uffdb_traced_ram ram[] = {
		{.gpa = 0, .hva = hva + len, .len = PAGE},
		{.gpa = RAM_GPA, .hva = hva, .len = len},
	};
	const struct uffdb_trace_config config = {
		.pid = getpid(),
		.by = UFFDB_TRACE_BY_LOG,
		.log_fd = log->fd,
		.ram = ram,
		.nr_ram = 2,
		.actual_pages = log->actual,
	};
	struct uffdb_trace *trace;

	CHECK(!uffdb_trace_create(&config, &trace));
	return trace;
}

#endif
