# SPDX-License-Identifier: GPL-2.0-or-later
"""Generate what a cffi extension is made of from the C header that it binds.

``python tools/binding.py HEADER --cdef FILE --stub FILE``: the declarations for cffi, and the
type stub of the extension. CMake runs it for the build, make for the stubs of the checkout.
It knows as much of C as our headers use, and refuses the rest.
"""

from __future__ import annotations

import argparse
import keyword
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycparser import c_ast, c_parser

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# What C++ compilers see alone.
_CPLUSPLUS = re.compile(r"^#ifdef __cplusplus\n.*?^#endif\n", re.MULTILINE | re.DOTALL)
_CONSTANT = re.compile(r"^#define[ \t]+(\w+)[ \t]+\S[^\n]*$", re.MULTILINE)
_GUARD = re.compile(r"\A\s*#ifndef (\w+)\n#define \1\n(.*)^#endif\s*\Z", re.MULTILINE | re.DOTALL)
_IGNORED = re.compile(r"^#(?:include|pragma)\b[^\n]*\n", re.MULTILINE)
_COMPUTED_SIZE = re.compile(r"\[\s*(?!\d+\s*\])[^\]]+\]")

_INTEGERS = {f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {
    "int",
    "size_t",
}
_TYPEDEFS = [f"typedef int {name};\n" for name in sorted({*_INTEGERS, "bool"} - {"int"})]

_STUB_HEAD = '''\
# SPDX-License-Identifier: GPL-2.0-or-later
# Generated from {header} by tools/binding.py. Its classes are there for type checkers alone:
# an instance stands for a pointer to the struct, or for the struct.
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, Literal, Self, TypeVar, overload

_T = TypeVar("_T")

class _Array(Generic[_T]):
    """A pointer, or an array: what it points to is the first of its items."""

    @overload
    def __getitem__(self, index: int, /) -> _T: ...
    @overload
    def __getitem__(self, index: slice, /) -> _Array[_T]: ...
    @overload
    def __setitem__(self, index: int, value: _T, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Sequence[_T], /) -> None: ...
    def __iter__(self) -> Iterator[_T]: ...
    def __len__(self) -> int: ...
    def __add__(self, count: int, /) -> Self: ...

'''

_FFI_TAIL = """\
    @overload
    def new(self, cdecl: str, init: object = ...) -> Any: ...
    def addressof(self, cdata: object, *fields: str | int) -> Any: ...
    def buffer(self, cdata: object, size: int = ...) -> Any: ...
    def cast(self, cdecl: str, value: object) -> Any: ...
    def from_buffer(self, python_buffer: object) -> Any: ...
    def gc(self, cdata: _T, destructor: Callable[[_T], object]) -> _T: ...
    def release(self, cdata: object) -> None: ...
    def string(self, cdata: object) -> Any: ...

ffi: _FFI
"""


class HeaderError(ValueError):
    """A header uses what this generator does not know."""


def declarations(header: str) -> str:
    """Return a header without comments and without what is the preprocessor's, but constants."""
    text = _CPLUSPLUS.sub("", _COMMENT.sub("", header))
    guarded = _GUARD.match(text)
    if not guarded:
        raise HeaderError("the header has no include guard around all of it")
    text = _IGNORED.sub("", guarded[2])
    left = re.search(r"^#.*$", _CONSTANT.sub("", text), re.MULTILINE)
    if left:
        raise HeaderError(f"cannot bind: {left[0]}")
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def cdef(header: str) -> str:
    """Return what cffi takes: the C compiler fills in what numbers constants and sizes are."""
    text = _CONSTANT.sub(r"#define \1 ...", declarations(header))
    return _COMPUTED_SIZE.sub("[...]", text)


@dataclass(slots=True)
class _Named:
    """A parameter, or a field."""

    name: str
    type: str


@dataclass(slots=True)
class _Function:
    name: str
    parameters: list[_Named]
    result: str


def _parse(text: str) -> list[Any]:
    """Parse what declarations() returned."""
    tree = c_parser.CParser().parse("".join(_TYPEDEFS) + _CONSTANT.sub("", text))
    return list(tree.ext[len(_TYPEDEFS) :])


def _is_void(kind: Any) -> bool:  # noqa: ANN401 - pycparser has no types
    return isinstance(kind, c_ast.TypeDecl) and getattr(kind.type, "names", None) == ["void"]


@dataclass(slots=True)
class _Surface:
    """What a header declares, with the types that Python sees."""

    constants: list[str] = field(default_factory=list)
    structs: dict[str, list[_Named]] = field(default_factory=dict)
    functions: list[_Function] = field(default_factory=list)
    # What ffi.new() can make: C's name for it, and the type of the result.
    makes: dict[str, str] = field(default_factory=dict)

    def add(self, declaration: Any) -> None:  # noqa: ANN401
        kind = declaration.type
        if isinstance(kind, c_ast.Struct):
            self._add_struct(kind)
        elif isinstance(kind, c_ast.Enum):
            self.constants += [each.name for each in kind.values.enumerators]
        elif isinstance(kind, c_ast.FuncDecl):
            self._add_function(declaration.name, kind)
        else:
            raise HeaderError(f"cannot bind the declaration of {declaration.name}")

    def _add_struct(self, struct: Any) -> None:  # noqa: ANN401
        fields = [_Named(each.name, self._type(each.type)) for each in struct.decls or ()]
        self._know(struct.name)
        self.structs[struct.name] = fields or self.structs[struct.name]

    def _add_function(self, name: str, function: Any) -> None:  # noqa: ANN401
        parameters = [
            _Named(each.name + "_" * keyword.iskeyword(each.name), self._accepted(each.type))
            for each in (function.args.params if function.args else ())
            if not _is_void(each.type)
        ]
        result = "None" if _is_void(function.type) else self._type(function.type)
        self.functions.append(_Function(name, parameters, result))

    def _accepted(self, kind: Any) -> str:  # noqa: ANN401
        """Return the type of what is taken for a parameter."""
        told = self._type(kind)
        if not isinstance(kind, c_ast.PtrDecl):
            return told
        if self.structs.get(told):
            return f"{told} | _Array[{told}]"
        if "const" in getattr(kind.type, "quals", ()) and told.startswith("_Array["):
            return f"{told} | {told.replace('_Array', 'Sequence', 1)}"
        return told

    def _type(self, kind: Any) -> str:  # noqa: ANN401
        """Return the type that Python sees; note what ffi.new() makes of it."""
        if isinstance(kind, c_ast.ArrayDecl):
            return f"_Array[{self._type(kind.type)}]"
        if isinstance(kind, c_ast.PtrDecl):
            return self._pointer(kind.type)
        base = kind.type
        if isinstance(base, c_ast.Struct):
            self._know(base.name)
            return str(base.name)
        if isinstance(base, c_ast.Enum) or base.names[-1] in _INTEGERS:
            return "int"
        if base.names == ["bool"]:
            return "bool"
        raise HeaderError(f"cannot bind the type {' '.join(base.names)}")

    def _pointer(self, to: Any) -> str:  # noqa: ANN401
        if isinstance(to, c_ast.TypeDecl):
            if isinstance(to.type, c_ast.Struct):
                return self._type(to)
            if to.type.names in (["void"], ["char"]):
                return "Any"
        told = f"_Array[{self._type(to)}]"
        if isinstance(to, c_ast.TypeDecl):
            name = " ".join(to.type.names)
            self.makes[f"{name} *"] = self.makes[f"{name}[]"] = told
        elif isinstance(to.type.type, c_ast.Struct):
            self.makes[f"struct {to.type.type.name} **"] = told
        return told

    def _know(self, struct: str) -> None:
        self.structs.setdefault(struct, [])

    def text(self) -> str:
        made = dict(self.makes)
        for name, fields in self.structs.items():
            if fields:
                made |= {f"struct {name} *": name, f"struct {name}[]": f"_Array[{name}]"}
        lines: list[str] = []
        for name, fields in self.structs.items():
            lines += [f"class {name}:"] if fields else [f"class {name}: ...", ""]
            lines += [f"    {each.name}: {each.type}" for each in fields]
            lines += [""] if fields else []
        lines += ["class _Lib:"]
        lines += [f"    {name}: Final[int]" for name in self.constants]
        for function in self.functions:
            taken = "".join(f", {each.name}: {each.type}" for each in function.parameters)
            end = ", /" if function.parameters else ""
            lines += [f"    def {function.name}(self{taken}{end}) -> {function.result}: ..."]
        lines += ["", "lib: _Lib", "", "class _FFI:", "    NULL: Any"]
        for name, result in sorted(made.items()):
            lines += ["    @overload"]
            lines += [
                f'    def new(self, cdecl: Literal["{name}"], init: object = ...) -> {result}: ...'
            ]
        return "\n".join(lines) + "\n" + _FFI_TAIL


def stub(header: str, name: str) -> str:
    """Return the type stub of the extension that binds ``header``, whose name is ``name``."""
    text = declarations(header)
    surface = _Surface(constants=_CONSTANT.findall(text))
    for declaration in _parse(text):
        surface.add(declaration)
    return _STUB_HEAD.format(header=name) + surface.text()


def function_names(header: str) -> set[str]:
    """Return the functions that a header declares."""
    parsed = _parse(declarations(header))
    return {each.name for each in parsed if isinstance(each.type, c_ast.FuncDecl)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("header", type=Path)
    arguments.add_argument("--cdef", type=Path)
    arguments.add_argument("--stub", type=Path)
    asked = arguments.parse_args()
    header = asked.header.read_text(encoding="utf-8")
    if asked.cdef:
        asked.cdef.write_text(cdef(header), encoding="utf-8")
    if asked.stub:
        asked.stub.write_text(stub(header, asked.header.name), encoding="utf-8")


if __name__ == "__main__":
    main()
