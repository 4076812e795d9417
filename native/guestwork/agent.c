// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PID 1 of the guest: runs commands for the host, any number at a time, over a serial port that
 * nothing else writes to. README.md has the protocol.
 *
 * It holds its memory locked and allocates none later: it has to answer while the guest is out of
 * memory. The kernel's OOM killer leaves PID 1 alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "guestwork.h"

#define MAX_JOBS  16
#define MAX_TOKEN 32
#define MAX_LINE  4096
#define PIPE_SIZE 65536 /* what a pipe holds (pipe(7)) */

struct job {
	char token[MAX_TOKEN + 1];
	pid_t pid; /* 0: this entry is free */
	int input; /* -1: it has none */
	int output;
	int status;
	char line[MAX_LINE];
	size_t length;
};

static struct {
	int tty, children;
	sigset_t unblocked;
	struct job jobs[MAX_JOBS];
	char line[MAX_LINE];
	size_t length;
	bool too_long;
} the;

static void write_all(int fd, const char *data, size_t length)
{
	while (length) {
		ssize_t written = write(fd, data, length);

		if (written < 0 && errno != EINTR)
			return;
		if (written > 0) {
			data += written;
			length -= (size_t)written;
		}
	}
}

static void say(const char *token, char kind, const char *text, size_t length)
{
	char line[MAX_TOKEN + MAX_LINE + 8];
	int used = snprintf(line, sizeof(line), "%.*s %c ", MAX_TOKEN, token, kind);

	memcpy(line + used, text, length);
	line[used + (int)length] = '\n';
	write_all(the.tty, line, (size_t)used + length + 1);
}

static void say_text(const char *token, char kind, const char *text)
{
	say(token, kind, text, strlen(text));
}

static void take_output(struct job *job, const char *data, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		if (data[i] == '\n') {
			say(job->token, '+', job->line, job->length);
			job->length = 0;
			continue;
		}
		if (job->length == sizeof(job->line)) {
			say(job->token, '-', job->line, job->length);
			job->length = 0;
		}
		job->line[job->length++] = data[i];
	}
}

/* Return: whether there may be more. */
static bool read_output(struct job *job)
{
	char data[MAX_LINE];
	ssize_t length;

	if (job->output < 0)
		return false;
	length = read(job->output, data, sizeof(data));
	if (length > 0) {
		take_output(job, data, (size_t)length);
		return true;
	}
	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	close(job->output);
	job->output = -1;
	return false;
}

/*
 * What the command left running in the background may hold its output open, and may go on writing:
 * take no more than a pipe can hold of what the command itself wrote, and wait for nothing.
 */
static void finish(struct job *job)
{
	char status[16];

	for (int i = 0; i <= PIPE_SIZE / MAX_LINE && read_output(job); i++)
		;
	if (job->length)
		say(job->token, '-', job->line, job->length);
	snprintf(status, sizeof(status), "%d",
		 WIFSIGNALED(job->status) ? 128 + WTERMSIG(job->status) : WEXITSTATUS(job->status));
	if (job->output >= 0)
		close(job->output);
	if (job->input >= 0)
		close(job->input);
	job->pid = 0;
	say_text(job->token, '=', status);
}

static void reap_children(void)
{
	struct signalfd_siginfo ignored;
	int status;
	pid_t pid;

	while (read(the.children, &ignored, sizeof(ignored)) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (struct job *job = the.jobs; job < the.jobs + MAX_JOBS; job++) {
			if (job->pid != pid)
				continue;
			job->status = status;
			finish(job);
		}
	}
}

static struct job *find_job(const char *token)
{
	for (struct job *job = the.jobs; job < the.jobs + MAX_JOBS; job++)
		if (job->pid && !strcmp(job->token, token))
			return job;
	return NULL;
}

static _Noreturn void become(const char *command, int input, int output)
{
	setsid();
	sigprocmask(SIG_SETMASK, &the.unblocked, NULL);
	signal(SIGPIPE, SIG_DFL);
	dup2(input, 0);
	dup2(output, 1);
	dup2(output, 2);
	execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	_exit(127);
}

static void run(const char *token, const char *command, bool with_input)
{
	int input[2] = {-1, -1}, output[2] = {-1, -1};
	struct job *job = the.jobs;

	while (job < the.jobs + MAX_JOBS && job->pid)
		job++;
	if (job == the.jobs + MAX_JOBS) {
		say_text(token, '!', "too many commands are running");
		return;
	}
	if (with_input ? pipe2(input, O_CLOEXEC)
		       : (input[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
		goto failed;
	if (pipe2(output, O_CLOEXEC))
		goto failed;
	fcntl(output[0], F_SETFL, O_NONBLOCK);
	if (with_input)
		fcntl(input[1], F_SETFL,
		      O_NONBLOCK); // nobody waits for a command that does not read
	job->pid = fork();
	if (job->pid < 0) {
		job->pid = 0;
		goto failed;
	}
	if (!job->pid)
		become(command, input[0], output[1]);
	close(input[0]);
	close(output[1]);
	snprintf(job->token, sizeof(job->token), "%s", token);
	job->input = input[1];
	job->output = output[0];
	job->length = 0;
	return;
failed:
	say_text(token, '!', strerror(errno));
	for (int i = 0; i < 2; i++) {
		if (input[i] >= 0)
			close(input[i]);
		if (output[i] >= 0)
			close(output[i]);
	}
}

static void obey(char *line)
{
	char *verb = strtok_r(line, " ", &line), *token = strtok_r(NULL, " ", &line);
	struct job *job;

	if (!verb || !token || strlen(token) > MAX_TOKEN)
		return; // what came in while the port was set up
	job = find_job(token);
	if (!strcmp(verb, "ping")) {
		say_text(token, '=', "0");
	} else if (!strcmp(verb, "run") || !strcmp(verb, "talk")) {
		run(token, line, !strcmp(verb, "talk"));
	} else if (job && !strcmp(verb, "kill")) {
		/* One that has just been forked has no session of its own yet, and no children. */
		if (kill(-job->pid, SIGKILL))
			kill(job->pid, SIGKILL);
	} else if (job && !strcmp(verb, "say") && job->input >= 0) {
		write_all(job->input, line, strlen(line));
		write_all(job->input, "\n", 1);
	}
}

static void read_commands(void)
{
	char data[MAX_LINE];
	ssize_t length = read(the.tty, data, sizeof(data));

	for (ssize_t i = 0; i < length; i++) {
		if (data[i] != '\n') {
			the.too_long = the.too_long || the.length == sizeof(the.line) - 1;
			if (!the.too_long)
				the.line[the.length++] = data[i];
			continue;
		}
		the.line[the.length] = '\0';
		if (!the.too_long)
			obey(the.line);
		the.length = 0;
		the.too_long = false;
	}
}

static void open_tty(const char *path)
{
	struct termios settings;

	the.tty = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (the.tty < 0 || tcgetattr(the.tty, &settings))
		die(path);
	cfmakeraw(&settings);
	settings.c_cflag |= CLOCAL;
	cfsetspeed(&settings, B115200);
	if (tcsetattr(the.tty, TCSAFLUSH, &settings))
		die(path);
}

static void watch_children(void)
{
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, &the.unblocked);
	the.children = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
	if (the.children < 0)
		die("signalfd");
	signal(SIGPIPE, SIG_IGN); // a command need not read what it is told
}

static void say_hello(void)
{
	char boot[64] = "";
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t length = read(fd, boot, sizeof(boot) - 1);

	close(fd);
	boot[length > 0 ? length - 1 : 0] = '\0'; // without its newline
	write_all(the.tty, "\n", 1);
	say_text("guestwork", '*', boot);
}

int agent_main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "guestwork agent TTY\n");
		return 2;
	}
	open_tty(argv[1]);
	watch_children();
	mlockall(MCL_CURRENT | MCL_FUTURE);
	say_hello();
	while (true) {
		struct pollfd polled[MAX_JOBS + 2] = {
			{.fd = the.tty, .events = POLLIN},
			{.fd = the.children, .events = POLLIN},
		};

		for (int i = 0; i < MAX_JOBS; i++) {
			polled[i + 2].fd = the.jobs[i].pid ? the.jobs[i].output : -1;
			polled[i + 2].events = POLLIN;
		}
		if (poll(polled, MAX_JOBS + 2, -1) < 0)
			continue;
		for (int i = 0; i < MAX_JOBS; i++)
			if (polled[i + 2].revents)
				read_output(&the.jobs[i]);
		if (polled[1].revents)
			reap_children();
		if (polled[0].revents & POLLIN)
			read_commands();
	}
}
