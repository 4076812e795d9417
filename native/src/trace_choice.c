// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One trace, by the best source that works. BPF costs the target about a third of what a perf
 * record does, and needs no event for each thread; it needs CAP_BPF, and the initial pid namespace.
 * A log is read only when it is asked for: somebody has QEMU write it.
 */
#include "trace.h"
#include "uffdballoon.h"

int uffdb_trace_create(const struct uffdb_trace_config *config, struct uffdb_trace **out)
{
	int bpf_error = 0, error;

	if (config->by == UFFDB_TRACE_BY_LOG)
		return uffdb_trace_create_log(config, out);
	if (config->by != UFFDB_TRACE_BY_PERF) {
		bpf_error = uffdb_trace_create_bpf(config, out);
		if (!bpf_error || config->by == UFFDB_TRACE_BY_BPF)
			return bpf_error;
	}
	error = uffdb_trace_create_perf(config, out);
	if (!error)
		(*out)->bpf_error = bpf_error;
	return error;
}
