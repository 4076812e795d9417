/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the generated binding sees before its own code. */
#include "bench.h"
#include "uffdballoon.h"
