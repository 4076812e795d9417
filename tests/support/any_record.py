# SPDX-License-Identifier: GPL-2.0-or-later
"""Records with any values that their fields can have, drawn from their annotations alone."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import pkgutil
import types
import typing
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import strategies as st

from uffdballoon.model import records

if TYPE_CHECKING:
    from collections.abc import Sequence

_TEXTS = st.text('aZ0 "\\\n\t\u00e9\u20ac\udcff', max_size=8)
_NUMBERS = st.integers(-(1 << 63), 1 << 63)
_PLAIN: dict[object, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: _NUMBERS,
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: _TEXTS,
    type(None): st.none(),
    msgspec.UnsetType: st.just(msgspec.UNSET),
}


def record_types() -> list[type]:
    """Return every record that there is, in the order of their names."""
    modules = [
        importlib.import_module(f"{records.__name__}.{module.name}")
        for module in pkgutil.iter_modules(records.__path__)
    ]
    found = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    here = [kind for kind in found if kind.__module__.startswith(records.__name__)]
    return sorted(filter(dataclasses.is_dataclass, here), key=lambda kind: kind.__name__)


def any_record(kind: type) -> st.SearchStrategy[Any]:
    """Draw records of a kind."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: _any_of(hints[field.name]) for field in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


def _any_of(hint: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 - an annotation
    if hint in _PLAIN:
        return _PLAIN[hint]
    if typing.get_origin(hint) is not None:
        return _any_made_of(typing.get_origin(hint), typing.get_args(hint))
    if issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    return any_record(hint)


def _any_made_of(origin: object, of: Sequence[Any]) -> st.SearchStrategy[Any]:
    if origin is typing.Literal:
        return st.sampled_from(of)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(_any_of, of))
    if origin is tuple and of[-1] is Ellipsis:
        return st.lists(_any_of(of[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(_any_of, of))
    assert origin is dict, f"no values are known of {origin}"
    return st.dictionaries(_any_of(of[0]), _any_of(of[1]), max_size=2)
