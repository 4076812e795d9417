# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line and files cut into options, and its own way to write sizes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.vmm.qemu.options import (
    Option,
    is_on,
    parse_config,
    parse_mebibytes,
    parse_options,
    parse_strtosz,
    split_keys,
)

_SHIFTS = {unit: 10 * power for power, unit in enumerate("bkmgtpe")}
_keys = st.sampled_from(("a", "size", "mem-path", "nodeid", "x1", "policy"))
_quotable = st.text("aZ09,=-. #[]{}\t\r\u00e9\u20ac", max_size=20)
_values = st.text('aZ09,=-. {}"\n\u00e9\u20ac', max_size=20)


@given(st.dictionaries(_keys, _values, min_size=1))
def test_keys_are_read_as_they_are_written(keys: dict[str, str]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in keys.items())
    assert split_keys(text) == keys


@given(st.dictionaries(_keys, _values | st.booleans() | st.integers()))
def test_json_says_the_same_as_keys(keys: dict[str, object]) -> None:
    read = split_keys(json.dumps(keys))
    assert read == {
        key: {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
        for key, value in keys.items()
    }


@pytest.mark.parametrize(
    ("text", "implied", "keys"),
    [
        ("q35", "type", {"type": "q35"}),
        ("q35,usb", "type", {"type": "q35", "usb": "on"}),
        ("type=q35", "type", {"type": "q35"}),
        ("q35", "", {"q35": "on"}),
        ("", "type", {"type": ""}),
        (",,", "type", {"type": ","}),
        ("a,,b,c=d,,", "type", {"type": "a,b", "c": "d,"}),
        ("size=1G,size=2G", "size", {"size": "2G"}),
        ("{", "type", {}),
        ('{"size": "1G"} and more', "", {}),
        ('{"a": [1], "b": null, "c": 1}', "", {"c": "1"}),
        ("[1]", "", {"[1]": "on"}),
        ('{"a":' * 10000, "", {}),
    ],
)
def test_keys_of_any_shape(text: str, implied: str, keys: dict[str, str]) -> None:
    assert split_keys(text, implied) == keys


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["-m", "1G"], [Option("m", "1G", {"size": "1G"})]),
        (["--m", "1G"], [Option("m", "1G", {"size": "1G"})]),
        (["-M", "q35"], [Option("machine", "q35", {"type": "q35"})]),
        (["-S", "-enable-kvm"], [Option("S", "", {}), Option("enable-kvm", "", {})]),
        (["disk.img", "-"], []),
        (["-nographic", "disk.img"], [Option("nographic", "", {})]),
        (["-m"], [Option("m", "", {})]),
        (["-m", "-S"], [Option("m", "", {}, is_doubtful=True), Option("S", "", {})]),
        (["-serial", "-"], [Option("serial", "-", {"-": "on"})]),
        (["-m", "-1"], [Option("m", "-1", {"size": "-1"})]),
        (["-accel", "kvm"], [Option("accel", "kvm", {"accel": "kvm"})]),
    ],
)
def test_a_command_line_is_cut_as_qemu_does(arguments: list[str], options: list[Option]) -> None:
    assert parse_options(arguments) == options


@given(st.lists(st.text(max_size=12), max_size=8))
def test_no_command_line_is_too_odd(arguments: list[str]) -> None:
    for option in parse_options(arguments):
        assert option.text == "" or option.text in arguments


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["machine", "object", "numa", "device"]),
            st.none() | _keys,
            st.dictionaries(_keys, _quotable, max_size=3),
        ),
        max_size=4,
    )
)
def test_a_file_is_read_as_it_is_written(
    sections: list[tuple[str, str | None, dict[str, str]]],
) -> None:
    lines = ["# a comment", ""]
    for group, name, keys in sections:
        lines.append(f'[{group} "{name}"]' if name else f"[{group}]")
        lines += [f'  {key} = "{value}"' for key, value in keys.items()]
    expected = [
        Option(group, "", {**({"id": name} if name else {}), **keys})
        for group, name, keys in sections
    ]
    assert parse_config("\n".join(lines)) == expected


def test_a_file_calls_the_memory_by_another_name() -> None:
    (option,) = parse_config('[memory]\nsize = "1G"\n') or []
    assert option.name == "m"


@given(number=st.integers(0, 1 << 40), unit=st.sampled_from(["", *_SHIFTS]), upper=st.booleans())
def test_a_whole_size_is_a_power_of_1024_times_its_number(
    number: int, unit: str, *, upper: bool
) -> None:
    text = f"{number}{unit.upper() if upper else unit}"
    assert parse_strtosz(text) == number << _SHIFTS[unit or "b"]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1.5G", 3 << 29),
        ("0.5k", 512),
        ("1.", 1),
        ("0x10", 16),
        ("0XfFk", 255 << 10),
        (" 7M ", 7 << 20),
        ("0", 0),
        ("1.999", 1),
    ],
)
def test_sizes_with_fractions_and_hexadecimal_ones(text: str, size_bytes: int) -> None:
    assert parse_strtosz(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "+1", "1GB", "1Gi", "0x", "1.5.5", "1e3", "1 G", "\u0661G", "9" * 21]
)
def test_what_is_no_size_of_qemus_is_none(text: str) -> None:
    assert parse_strtosz(text) is None


@pytest.mark.parametrize(
    ("text", "mib"), [("512", 512), ("512M", 512), ("1G", 1024), ("0.5G", 512), ("1024k", 1)]
)
def test_memory_is_in_mebibytes_without_a_unit(text: str, mib: int) -> None:
    assert parse_mebibytes(text) == mib << 20


@pytest.mark.parametrize("text", ["on", "yes", "true", "y"])
def test_what_switches_on(text: str) -> None:
    assert is_on(text)
    assert not is_on(text.upper())
    assert not is_on("off")
