# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/binding.py: what it makes of a header, and of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.binding import HeaderError, cdef, function_names, stub

_ROOT = Path(__file__).parents[2]

_HEADER = """\
/* SPDX */
#ifndef SOME_H
#define SOME_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define SOME_MOST 8u /* at most */

enum some_word { SOME_FIRST = 'S', SOME_SECOND };

struct some_store; /* opaque */

/** some_open - a comment; int some_ghost(void); */
int some_open(const struct some_store *from, struct some_store **out);

struct some_row {
	uint64_t start, len; // two of them
	uint8_t spare[7];
	uint64_t counts[SOME_MOST + 1];
	const struct some_store *store;
};

int64_t some_sum(const int32_t *ids, const void *with, bool on);
void some_fill(struct some_row *out, uint64_t *next);
const char *some_name(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
"""


def _header_of(body: str) -> str:
    return f"#ifndef A_H\n#define A_H\n{body}\n#endif\n"


def test_cffi_gets_declarations_alone_and_asks_the_compiler_for_numbers() -> None:
    assert cdef(_HEADER).splitlines() == [
        "#define SOME_MOST ...",
        "enum some_word { SOME_FIRST = 'S', SOME_SECOND };",
        "struct some_store;",
        "int some_open(const struct some_store *from, struct some_store **out);",
        "struct some_row {",
        "\tuint64_t start, len;",
        "\tuint8_t spare[7];",
        "\tuint64_t counts[...];",
        "\tconst struct some_store *store;",
        "};",
        "int64_t some_sum(const int32_t *ids, const void *with, bool on);",
        "void some_fill(struct some_row *out, uint64_t *next);",
        "const char *some_name(void);",
    ]


def _members(made: str) -> dict[str, list[str]]:
    """Return the lines of each class of a stub."""
    return {
        each.name: [ast.unparse(line).replace("\n    ", " ") for line in each.body]
        for each in ast.parse(made).body
        if isinstance(each, ast.ClassDef)
    }


def test_a_stub_has_every_constant_struct_and_function_with_its_types() -> None:
    members = _members(stub(_HEADER, "some.h"))
    assert members["_Lib"] == [
        "SOME_MOST: Final[int]",
        "SOME_FIRST: Final[int]",
        "SOME_SECOND: Final[int]",
        "def some_open(self, from_: some_store, out: _Array[some_store], /) -> int: ...",
        "def some_sum(self, ids: _Array[int] | Sequence[int], with_: Any, on: bool, /) -> int: ...",
        "def some_fill(self, out: some_row | _Array[some_row], next: _Array[int], /) -> None: ...",
        "def some_name(self) -> Any: ...",
    ]
    assert members["some_row"] == [
        "start: int",
        "len: int",
        "spare: _Array[int]",
        "counts: _Array[int]",
        "store: some_store",
    ]
    assert members["some_store"] == ["..."]


@pytest.mark.parametrize(
    ("cdecl", "result"),
    [
        ("struct some_row *", "some_row"),
        ("struct some_row[]", "_Array[some_row]"),
        ("struct some_store **", "_Array[some_store]"),
        ("uint64_t *", "_Array[int]"),
        ("int32_t[]", "_Array[int]"),
    ],
)
def test_a_stub_knows_what_is_made_by_its_c_type(cdecl: str, result: str) -> None:
    made = stub(_HEADER, "some.h")
    assert f'def new(self, cdecl: Literal["{cdecl}"], init: object = ...) -> {result}: ...' in made


def test_an_opaque_struct_cannot_be_made() -> None:
    assert '"struct some_store *"' not in stub(_HEADER, "some.h")


def test_functions_are_those_that_are_declared() -> None:
    assert function_names(_HEADER) == {"some_open", "some_sum", "some_fill", "some_name"}


@pytest.mark.parametrize(
    "header",
    [
        "int no_guard(void);\n",
        _header_of("#define TWICE(x) (2 * (x))"),
        _header_of("#if defined(A)\nint sometimes(void);\n#endif"),
        _header_of("double a_float(void);"),
        _header_of("extern int a_variable;"),
        _header_of("typedef int a_type;"),
    ],
)
def test_what_the_generator_does_not_know_is_refused(header: str) -> None:
    with pytest.raises(HeaderError):
        stub(header, "some.h")


@pytest.mark.parametrize(
    ("header", "made"),
    [
        ("native/include/uffdballoon.h", "uffdballoon/_native.pyi"),
        ("native/bench/bench.h", "uffdballoon/bench/_bench.pyi"),
    ],
)
def test_the_stub_that_types_are_checked_by_is_up_to_date(header: str, made: str) -> None:
    source = _ROOT / header
    assert (_ROOT / made).read_text(encoding="utf-8") == stub(
        source.read_text(encoding="utf-8"), source.name
    ), "make build"
