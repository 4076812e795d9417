// SPDX-License-Identifier: GPL-2.0-or-later
#include "cycles.h"
#include "answer.h"

void cycles_answer(const struct memory_touch *touch)
{
	answer_hex("count", touch->count);
	answer_hex("min", touch->min);
	answer_hex("avg", touch->total / touch->count);
	answer_hex("max", touch->max);
}
