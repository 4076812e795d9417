# SPDX-License-Identifier: GPL-2.0-or-later
# The compiled binding: its names are those of native/binding/cdef.h, which mypy cannot read.
from typing import Any

ffi: Any
lib: Any
