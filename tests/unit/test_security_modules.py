# SPDX-License-Identifier: GPL-2.0-or-later
"""Which security module is named where tracing is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uffdballoon.target.security_modules import Surroundings, likely

PLAIN = Surroundings(yama_scope=None, ours="", theirs="", may_trace=True)
SELINUX = "system_u:system_r:svirt_t:s0:c1,c2"


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        (replace(PLAIN, yama_scope=3), "ptrace_scope is 3"),
        (replace(PLAIN, yama_scope=3, may_trace=False), "ptrace_scope is 3"),
        (replace(PLAIN, yama_scope=1, may_trace=False), "CAP_SYS_PTRACE, and kernel.yama"),
        (replace(PLAIN, yama_scope=0, may_trace=False), "we lack CAP_SYS_PTRACE"),
        (replace(PLAIN, may_trace=False, theirs=SELINUX), "we lack CAP_SYS_PTRACE"),
        (replace(PLAIN, theirs="libvirt-4711 (enforce)"), "AppArmor is likely"),
        (replace(PLAIN, ours="unconfined", theirs="libvirt-4711 (enforce)"), "libvirt-4711"),
        (replace(PLAIN, ours="usr.sbin.thing (enforce)", theirs="unconfined"), "AppArmor"),
        (replace(PLAIN, ours="a//b (enforce)", theirs="unconfined"), "AppArmor"),
        (replace(PLAIN, theirs=SELINUX), "SELinux is likely"),
        (
            replace(PLAIN, ours="system_u:system_r:init_t:s0", theirs=SELINUX),
            "init_t:s0",
        ),
        (replace(PLAIN, ours="unconfined", theirs="unconfined"), "a security module"),
        (PLAIN, "a security module"),
    ],
)
def test_the_likeliest_is_named(seen: Surroundings, named: str) -> None:
    assert named in likely(seen).why
    assert likely(seen).hint
