# SPDX-License-Identifier: GPL-2.0-or-later
"""The C library as others get it: installed, found by pkg-config, linked with, run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import uffdballoon
from tools.binding import function_names
from uffdballoon import _native

_ROOT = Path(__file__).parents[2]
_BUILD = _ROOT / "build" / "native"
_HEADER = _ROOT / "native" / "include" / "uffdballoon.h"
_DOCUMENT = (_ROOT / "docs" / "library.md").read_text(encoding="utf-8")
_SONAME = "libuffdballoon.so." + ".".join(uffdballoon.__version__.split(".")[:2])


def _told(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _exported(library: Path) -> set[str]:
    shown = _told("nm", "--dynamic", "--defined-only", "--format=just-symbols", library)
    return set(shown.split())


def _block_after(text: str) -> str:
    """Return the first block of code behind ``text`` in docs/library.md."""
    found = re.search(r"```\w*\n(.*?)```", _DOCUMENT.split(text, 1)[1], re.DOTALL)
    assert found
    return found[1]


def _install(prefix: Path, *components: str) -> Path:
    for component in components:
        _told("cmake", "--install", _BUILD, "--prefix", prefix, "--component", component)
    return prefix


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of it is installed, away from where it said at first."""
    if os.environ.get("UFFDBALLOON_REQUIRE") != "1":
        if not (_BUILD / "libuffdballoon.so").exists():
            pytest.skip("not built: make build-native")
        if not shutil.which("pkg-config"):
            pytest.skip("no pkg-config here: apt-get install pkg-config")
    return _install(tmp_path_factory.mktemp("prefix"), "library", "development")


def _pkg_config(prefix: Path, *arguments: str) -> list[str]:
    (pc,) = prefix.rglob("uffdballoon.pc")
    paths = {"PKG_CONFIG_PATH": str(pc.parent)}
    return _told("pkg-config", *arguments, "uffdballoon", env=paths).split()


def _build(prefix: Path, source: Path) -> Path:
    flags = _pkg_config(prefix, "--cflags", "--libs")
    program = source.with_suffix("")
    _told("cc", "-Wall", "-Wextra", "-Werror", "-o", program, source, *flags)
    return program


def _run(prefix: Path, program: Path) -> str:
    (library,) = prefix.rglob(_SONAME)
    return _told(program, env={"LD_LIBRARY_PATH": str(library.parent)})


def test_the_documented_program_builds_by_pkg_config_and_prints_what_is_documented(
    prefix: Path, tmp_path: Path
) -> None:
    source = tmp_path / "touches.c"
    source.write_text(_block_after("This program needs no privilege"), encoding="utf-8")
    assert _run(prefix, _build(prefix, source)) == _block_after("It prints:")


def test_it_works_where_it_was_moved_to(prefix: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(prefix, moved, symlinks=True)
    source = tmp_path / "version.c"
    source.write_text(
        "#include <stdio.h>\n#include <uffdballoon.h>\nint main(void) "
        "{ return puts(uffdb_version()) == EOF; }\n",
        encoding="utf-8",
    )
    flags = " ".join(_pkg_config(moved, "--cflags", "--libs"))
    assert str(prefix) not in flags
    assert _run(moved, _build(moved, source)).strip() == uffdballoon.__version__


def test_pkg_config_tells_the_version(prefix: Path) -> None:
    assert _pkg_config(prefix, "--modversion") == [uffdballoon.__version__]


def test_a_program_asks_for_the_minor_version_that_it_was_linked_with(prefix: Path) -> None:
    (library,) = prefix.rglob("libuffdballoon.so")
    assert f"[{_SONAME}]" in _told("readelf", "--dynamic", library)
    assert f"`lib/{_SONAME}`" in _DOCUMENT


def test_it_exports_what_the_header_declares_and_nothing_else(prefix: Path) -> None:
    (library,) = prefix.rglob("libuffdballoon.so")
    assert _exported(library) == function_names(_HEADER.read_text(encoding="utf-8"))


def test_what_programs_run_with_is_apart_from_what_they_are_built_with(
    prefix: Path, tmp_path: Path
) -> None:
    runtime = _install(tmp_path / "runtime", "library")
    names = {file.name for file in runtime.rglob("*") if not file.is_dir()}
    assert names == {_SONAME, f"libuffdballoon.so.{uffdballoon.__version__}"}
    everything = {file.name for file in prefix.rglob("*") if not file.is_dir()}
    assert everything - names == {"libuffdballoon.so", "uffdballoon.h", "uffdballoon.pc"}


def test_a_program_in_cpp_may_include_the_header(prefix: Path, tmp_path: Path) -> None:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler here")
    source = tmp_path / "version.cpp"
    source.write_text(
        "#include <uffdballoon.h>\nint main() { return uffdb_version() == nullptr; }\n",
        encoding="utf-8",
    )
    program = source.with_suffix("")
    _told(
        "c++", "-Wall", "-Werror", "-o", program, source, *_pkg_config(prefix, "--cflags", "--libs")
    )
    _run(prefix, program)


def test_the_extension_exports_none_of_it() -> None:
    assert _native.__file__
    assert _exported(Path(_native.__file__)) == {"PyInit__native"}
