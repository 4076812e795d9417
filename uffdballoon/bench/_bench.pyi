# SPDX-License-Identifier: GPL-2.0-or-later
# The compiled binding: its names are those of native/bench/cdef.h, which mypy cannot read.
from typing import Any

ffi: Any
lib: Any
