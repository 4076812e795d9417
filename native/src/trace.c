// SPDX-License-Identifier: GPL-2.0-or-later
/* What every trace is, whatever it comes from. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "trace.h"
#include "uffdballoon.h"

int uffdb_trace_init(struct uffdb_trace *trace, const struct uffdb_trace_source *source,
		     const struct uffdb_trace_config *config)
{
	trace->source = source;
	trace->config = *config;
	trace->files = calloc(config->nr_files + 1, sizeof(*trace->files));
	trace->ram = calloc(config->nr_ram + 1, sizeof(*trace->ram));
	if (!trace->files || !trace->ram)
		return -ENOMEM;
	if (config->nr_files)
		memcpy(trace->files, config->files, config->nr_files * sizeof(*trace->files));
	if (config->nr_ram)
		memcpy(trace->ram, config->ram, config->nr_ram * sizeof(*trace->ram));
	return 0;
}

void uffdb_trace_destroy(struct uffdb_trace *trace)
{
	if (!trace)
		return;
	free(trace->files);
	free(trace->ram);
	trace->source->destroy(trace);
}

const char *uffdb_trace_source(const struct uffdb_trace *trace, int *bpf_error)
{
	*bpf_error = trace->bpf_error;
	return trace->source->name;
}

int uffdb_trace_fd(const struct uffdb_trace *trace)
{
	return trace->source->fd(trace);
}

void uffdb_trace_hush(struct uffdb_trace *trace)
{
	trace->source->hush(trace);
}

int uffdb_trace_quiet(struct uffdb_trace *trace)
{
	return trace->source->quiet(trace);
}

uint64_t uffdb_trace_drain(struct uffdb_trace *trace, uffdb_traced_fn *take, void *argument)
{
	return trace->source->drain(trace, take, argument);
}
