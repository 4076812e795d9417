// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What QEMU's own trace events say, in the file that it logs to. It writes a line for each page
 * before it does anything with it, and long before the guest is answered: what a guest does after
 * a deflate comes after the deflate's line.
 *
 * A file keeps nobody waiting. It grows, so holes are punched into what was read; where its file
 * system is full all the same, QEMU drops lines and says nothing. Nor does it say that another
 * client of its monitor had it log elsewhere; but it closes this file then (util/log.c), a grace
 * period of RCU later: 10 to 100 ms.
 *
 * Lines carry no time that could be used (with -msg timestamp=on one of CLOCK_REALTIME, which is
 * set now and then). One that was not there when the file's size was asked for was finished later
 * than that. So a record's time is the one before the last drain asked for the size: it is never
 * too late, which is what its users need. A record is called past (observe.c, is_past()) only if
 * it can have come before the reset; to call it later would balloon again what the reset gave
 * back. A page is protected (protect_if_filled()) if it can have been given up before pages were
 * filled; to protect one too many is to protect what is absent, or is about to be discarded.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "clock.h"
#include "log_lines.h"
#include "pages.h"
#include "trace.h"
#include "uffdballoon.h"

#define BUFFER	   (1u << 18) /* bytes that are read at once, and the longest line */
#define PUNCH_STEP (1ull << 20)
#define BEYOND	   (1ll << 40) /* where no file of ours has anything */

struct log_trace {
	struct uffdb_trace trace;
	int fd; /* of our own: its position is nobody else's */
	int inotify, watch;
	int closing; /* an inotify that tells when who writes closes it */
	int bell;    /* readable when one of the two is */
	char path[32];
	bool bounded;	  /* its file system has a size */
	bool was_full;	  /* at the last drain */
	bool begun;	  /* the first record was handed over */
	bool skips;	  /* a line that is longer than the buffer, up to its end */
	uint64_t at;	  /* where to read on */
	uint64_t drained; /* where the last drain ended */
	uint64_t hole;	  /* up to where holes were punched */
	uint64_t since;	  /* CLOCK_MONOTONIC: before the size was asked for at the last drain */
	char *buffer;
	size_t held; /* bytes in it: a line without its end */
};

struct taking {
	struct log_trace *log;
	uffdb_traced_fn *take;
	void *argument;
	uint64_t taken;
};

static void pass_on(struct taking *taking, uint32_t kind, uint64_t hva, uint64_t len)
{
	const struct uffdb_traced record = {
		.time_ns = taking->log->since, .hva = hva, .len = len, .kind = kind};

	taking->take(taking->argument, &record);
	taking->taken++;
}

/* A page of no RAM of ours changes nothing. */
static void pass_on_page(struct taking *taking, uint64_t gpa)
{
	const struct uffdb_trace *trace = &taking->log->trace;

	for (size_t i = 0; i < trace->config.nr_ram; i++) {
		const struct uffdb_traced_ram *ram = &trace->ram[i];

		if (gpa < ram->gpa || gpa - ram->gpa >= ram->len)
			continue;
		pass_on(taking, UFFDB_TRACED_TOGGLE, ram->hva + (gpa - ram->gpa), UFFDB_PAGE);
		return;
	}
}

static void take_line(struct taking *taking, const char *text, size_t len)
{
	struct uffdb_log_line line = uffdb_log_line_of(text, len);

	if (line.torn)
		pass_on(taking, UFFDB_TRACED_LOST, 0, 1);
	if (line.kind == UFFDB_LOG_PAGE)
		pass_on_page(taking, line.gpa);
	else if (line.kind == UFFDB_LOG_ACTUAL)
		pass_on(taking, UFFDB_TRACED_ACTUAL, line.before, line.pages);
	else if (line.kind == UFFDB_LOG_BROKEN)
		pass_on(taking, UFFDB_TRACED_LOST, 0, 1);
}

/* Take the whole lines of what is in the buffer, and keep the rest at its beginning. */
static void take_lines(struct taking *taking)
{
	struct log_trace *log = taking->log;
	char *at = log->buffer, *end = at + log->held, *newline;

	while ((newline = memchr(at, '\n', (size_t)(end - at)))) {
		if (log->skips)
			pass_on(taking, UFFDB_TRACED_LOST, 0, 1);
		else
			take_line(taking, at, (size_t)(newline - at));
		log->skips = false;
		at = newline + 1;
	}
	log->held = (size_t)(end - at);
	memmove(log->buffer, at, log->held);
	if (log->held == BUFFER || log->skips) {
		log->skips = true;
		log->held = 0;
	}
}

/*
 * Of a file that was truncated QEMU's position is left where it was, unless it has it open for
 * appending: nothing is there up to that, and lines before it are gone.
 */
static void skip_hole(struct taking *taking, uint64_t from)
{
	struct log_trace *log = taking->log;
	off_t data = lseek(log->fd, (off_t)from, SEEK_DATA);

	log->at = data > (off_t)from ? (uint64_t)data : from;
	log->hole = log->at & ~(UFFDB_PAGE - 1);
	log->held = 0;
	log->skips = false;
	pass_on(taking, UFFDB_TRACED_LOST, 0, 0);
}

/* What is written has no zeros. */
static bool is_empty(const char *bytes, size_t nr)
{
	return !bytes[0] && !bytes[nr - 1];
}

static void read_up_to(struct taking *taking, uint64_t size)
{
	struct log_trace *log = taking->log;

	while (log->at < size) {
		size_t room = BUFFER - log->held;
		size_t wanted = size - log->at < room ? (size_t)(size - log->at) : room;
		ssize_t got = pread(log->fd, log->buffer + log->held, wanted, (off_t)log->at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return; /* truncated meanwhile: the next drain sees it */
		if (is_empty(log->buffer + log->held, (size_t)got)) {
			skip_hole(taking, log->at + (uint64_t)got);
			continue;
		}
		log->at += (uint64_t)got;
		log->held += (size_t)got;
		take_lines(taking);
	}
}

/* What was read is needed no more; the last page is being written to. */
static void punch(struct log_trace *log, uint64_t least)
{
	uint64_t end = log->at & ~(UFFDB_PAGE - 1);

	if (end < log->hole + least || end == log->hole)
		return;
	if (!fallocate(log->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)log->hole,
		       (off_t)(end - log->hole)))
		log->hole = end;
}

static bool is_full(const struct log_trace *log)
{
	struct statfs of;

	return log->bounded && !fstatfs(log->fd, &of) && !of.f_bavail;
}

static void read_what_is_there(struct taking *taking)
{
	struct log_trace *log = taking->log;
	struct stat of;

	if (fstat(log->fd, &of))
		return;
	if ((uint64_t)of.st_size < log->at)
		skip_hole(taking, 0);
	read_up_to(taking, (uint64_t)of.st_size);
}

/*
 * Nobody but us makes room. So a file system that was full at any time since the last drain is
 * full now; lines were lost after all that are there, and before those that there is room for now.
 */
static void look_for_room(struct taking *taking)
{
	struct log_trace *log = taking->log;
	bool full = is_full(log), grew = log->at != log->drained;

	if (full) {
		read_what_is_there(taking);
		if (grew || !log->was_full)
			pass_on(taking, UFFDB_TRACED_LOST, 0, 0);
	}
	punch(log, full ? 0 : PUNCH_STEP);
	log->was_full = full;
	log->drained = log->at;
}

/* Whoever writes to it does so no more: it was left for another. */
static bool was_closed(const struct log_trace *log)
{
	struct inotify_event events[16];

	return read(log->closing, events, sizeof(events)) > 0;
}

static uint64_t log_drain(struct uffdb_trace *of, uffdb_traced_fn *take, void *argument)
{
	struct log_trace *log = (struct log_trace *)of;
	struct taking taking = {log, take, argument, 0};
	uint64_t now = uffdb_now_ns(CLOCK_MONOTONIC);

	if (!log->begun)
		pass_on(&taking, UFFDB_TRACED_ACTUAL, of->config.actual_pages,
			of->config.actual_pages);
	log->begun = true;
	if (was_closed(log))
		pass_on(&taking, UFFDB_TRACED_LOST, 0, 0);
	read_what_is_there(&taking);
	if (log->bounded || log->at != log->drained)
		look_for_room(&taking);
	log->since = now;
	return taking.taken;
}

static int log_get_fd(const struct uffdb_trace *of)
{
	return ((const struct log_trace *)of)->bell;
}

static void empty_inotify(const struct log_trace *log)
{
	struct inotify_event events[16];

	while (read(log->inotify, events, sizeof(events)) > 0)
		;
}

static void log_hush(struct uffdb_trace *of)
{
	struct log_trace *log = (struct log_trace *)of;

	if (log->watch >= 0)
		inotify_rm_watch(log->inotify, log->watch); /* gone if it has rung */
	log->watch = -1;
	empty_inotify(log);
}

/* It rings once: a line that follows costs QEMU nothing. */
static int log_quiet(struct uffdb_trace *of)
{
	struct log_trace *log = (struct log_trace *)of;

	log_hush(of);
	log->watch = inotify_add_watch(log->inotify, log->path, IN_MODIFY | IN_ONESHOT);
	return log->watch < 0 ? -errno : 0;
}

static void log_destroy(struct uffdb_trace *of)
{
	struct log_trace *log = (struct log_trace *)of;

	const int fds[] = {log->bell, log->closing, log->inotify, log->fd};

	for (size_t i = 0; i < sizeof(fds) / sizeof(*fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(log->buffer);
	free(log);
}

static const struct uffdb_trace_source LOG = {
	.name = "log",
	.drain = log_drain,
	.fd = log_get_fd,
	.hush = log_hush,
	.quiet = log_quiet,
	.destroy = log_destroy,
};

/* Open it anew: QEMU may write at the position of the description that we were given. */
static int open_log(struct log_trace *log, int fd)
{
	struct statfs of;
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return -errno;
	if ((flags & O_ACCMODE) != O_RDWR)
		return -EACCES;
	snprintf(log->path, sizeof(log->path), "/proc/self/fd/%d", fd);
	log->fd = open(log->path, O_RDWR | O_CLOEXEC);
	if (log->fd < 0)
		return -errno;
	snprintf(log->path, sizeof(log->path), "/proc/self/fd/%d", log->fd);
	if (fallocate(log->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BEYOND, UFFDB_PAGE))
		return -errno;
	if (fstatfs(log->fd, &of))
		return -errno;
	log->bounded = of.f_blocks; /* a memfd's has none */
	return 0;
}

static int add_to_bell(struct log_trace *log, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return epoll_ctl(log->bell, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

/* Two of them: of one, each file has a single watch, and that of IN_MODIFY goes with its ring. */
static int make_bell(struct log_trace *log)
{
	int error;

	log->inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	log->closing = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	log->bell = epoll_create1(EPOLL_CLOEXEC);
	if (log->inotify < 0 || log->closing < 0 || log->bell < 0 ||
	    inotify_add_watch(log->closing, log->path, IN_CLOSE_WRITE) < 0)
		return -errno;
	error = add_to_bell(log, log->inotify);
	return error ? error : add_to_bell(log, log->closing);
}

static int begin_log(struct log_trace *log)
{
	int error = open_log(log, log->trace.config.log_fd);

	if (error)
		return error;
	log->buffer = malloc(BUFFER);
	if (!log->buffer)
		return -ENOMEM;
	error = make_bell(log);
	return error ? error : log_quiet(&log->trace);
}

int uffdb_trace_create_log(const struct uffdb_trace_config *config, struct uffdb_trace **out)
{
	struct log_trace *log = calloc(1, sizeof(*log));
	int error;

	if (!log)
		return -ENOMEM;
	log->fd = log->inotify = log->watch = log->closing = log->bell = -1;
	log->since = uffdb_now_ns(CLOCK_MONOTONIC);
	error = uffdb_trace_init(&log->trace, &LOG, config);
	if (!error)
		error = begin_log(log);
	if (error) {
		uffdb_trace_destroy(&log->trace);
		return error;
	}
	*out = &log->trace;
	return 0;
}
