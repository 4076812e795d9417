# SPDX-License-Identifier: GPL-2.0-or-later
"""What a manager needs, what it gives up, and what it does without."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import Command
from tests.support.marks import REAL_QEMU
from uffdballoon.errors import UffdballoonError
from uffdballoon.host.privileges import Capability
from uffdballoon.host.process import duplicate_fd
from uffdballoon.host.trace import Trace, TracedBy
from uffdballoon.lab.confinement import EVERYTHING, Confinement
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.ram import Backing
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = REAL_QEMU

BALLOON = GpaRange.of(64 << 20, 2 << 20)
TAKEN = GpaRange.of(96 << 20, 2 << 20)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0x1EA5
UID = 65533  # the manager's; QEMU's is another
RAM = Memory(size_bytes=192 << 20)
SHARED_RAM = Memory(size_bytes=192 << 20, backing=Backing.MEMFD, share=True)
TRUST = "--trust-seccomp"  # CAP_SYS_ADMIN is lacking to read QEMU's filters
_PATIENCE_S = 30.0

# In a mount namespace of its own, where tracefs is mounted as a host's boot would.
_WITH_TRACEFS = 'mount -t tracefs tracefs /sys/kernel/tracing && exec "$@"'


@pytest.fixture(params=[RAM, SHARED_RAM], ids=["private", "shared"])
def confined(request: pytest.FixtureRequest, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    """A QEMU of another user, without privileges."""
    return start_confined(start_qemu, request.param)


def start_confined(start_qemu: Callable[[QemuOptions], Qemu], memory: Memory = RAM) -> Qemu:
    options = QemuOptions(accel=Accel.TCG, memory=memory, sandbox=True, confinement=EVERYTHING)
    qemu = start_qemu(options)
    qemu.guest.fill(OWNED, SEED)
    return qemu


def user_with(runtime: Path, *capabilities: Capability) -> Command:
    """The command as a user who has nothing but some capabilities."""
    held = ",".join(f"+{capability.name.lower()}" for capability in capabilities)
    sets = [f"--{kind}=-all{',' * bool(held)}{held}" for kind in ("inh-caps", "bounding-set")]
    ambient = [f"--ambient-caps=-all,{held}"] if held else []
    return Command(
        (
            *("unshare", "--mount", "--", "sh", "-c", _WITH_TRACEFS, "sh"),
            *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"),
            *(*sets, *ambient, "--"),
        ),
        {"XDG_RUNTIME_DIR": str(runtime)},
    )


@pytest.fixture
def runtime() -> Iterator[Path]:
    """The user's own runtime directory."""
    with tempfile.TemporaryDirectory(prefix="uffdballoon-runtime-") as path:
        os.chown(path, UID, UID)
        yield Path(path)


def give_monitor(qemu: Qemu) -> None:
    """Let the manager's user connect to the monitor, as a host's administrator would."""
    qemu.directory.chmod(0o711)
    os.chown(qemu.qmp_path, UID, UID)


def use(command: Command, qemu: Qemu, *, follows: bool = True) -> dict[str, Any]:
    """Go through what a manager is for; return its status before anything was touched."""
    state: dict[str, Any] = command.ask("status", qemu.pid)
    before = state["touches"]["violations"]
    if follows:
        qemu.guest.balloon_inflate(BALLOON)
        wait_until(
            lambda: command.ask("status", qemu.pid)["ballooned_bytes"] == BALLOON.size_bytes,
            "what the guest gave up is not seen",
        )
    span = ("--gpa", hex(TAKEN.start), "--size", TAKEN.size_bytes)
    done = command.run("inflate", qemu.pid, *span, "--guest-agreed")
    assert done.returncode == 0, done.stderr
    for gpa in (TAKEN.start, BALLOON.start)[: 1 + follows]:
        qemu.guest.touch(GpaRange.of(gpa, PAGE_BYTES), Access.WRITE)
    after = command.ask("status", qemu.pid)
    assert after["touches"]["violations"] == before + 1 + follows
    done = command.run("deflate", qemu.pid, *span)
    assert done.returncode == 0, done.stderr
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0
    return state


def wait_until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.02)


def cut_connection_of(pid: int, path: Path) -> None:
    """Shut down a process's one connection to a socket, as if the other end had."""
    cut = 0
    pidfd = os.pidfd_open(pid)
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            is_socket = str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:  # it goes on with its work meanwhile
            continue
        if not is_socket:
            continue
        try:
            fd = duplicate_fd(pidfd, int(entry.name), pid=pid)
        except UffdballoonError:  # closed since
            continue
        with socket.socket(fileno=fd) as connection, contextlib.suppress(OSError):
            if connection.getpeername() == str(path):
                connection.shutdown(socket.SHUT_RDWR)
                cut += 1
    os.close(pidfd)
    assert cut == 1


def threads_of(pid: int) -> list[dict[str, str]]:
    """Read what the kernel says of each thread of a process."""
    return [
        dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        for status in Path(f"/proc/{pid}/task").glob("*/status")
    ]


def test_every_thread_of_a_manager_gives_up_what_it_does_not_need(confined: Qemu) -> None:
    command = Command()
    with command.attached(confined.pid, "--qmp", confined.qmp_path) as manager:
        sandbox = use(command, confined)["sandbox"]
        assert sandbox["on"]
        kept = sum(1 << Capability[name.removeprefix("CAP_")] for name in sandbox["capabilities"])
        assert set(sandbox["capabilities"]) == {
            "CAP_SYS_PTRACE",
            "CAP_SYS_NICE",
            "CAP_DAC_OVERRIDE",  # the monitor's socket is in another user's directory
        }
        threads = threads_of(manager.pid)
        assert len(threads) >= 3, "the main one, the monitor's and the fault loop"
        for thread in threads:
            assert int(thread["CapPrm"], 16) == int(thread["CapEff"], 16) == kept, thread["Name"]
            assert int(thread["CapInh"], 16) == int(thread["CapAmb"], 16) == 0
            assert thread["NoNewPrivs"] == "1"
            assert thread["Seccomp"] == "2"
        assert command.run("detach", confined.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0
    confined.guest.ping()


def test_kill_keeps_what_it_needs(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    qemu = start_confined(start_qemu)
    command = Command()
    policy = ("--policy", "zero-read,kill")
    with command.attached(qemu.pid, "--qmp", qemu.qmp_path, *policy) as manager:
        assert "CAP_KILL" in command.ask("status", qemu.pid)["sandbox"]["capabilities"]
        span = ("--gpa", hex(TAKEN.start), "--size", TAKEN.size_bytes)
        assert command.run("inflate", qemu.pid, *span, "--guest-agreed").returncode == 0
        qemu.guest.start_touch(GpaRange.of(TAKEN.start, PAGE_BYTES), Access.WRITE)
        assert qemu.wait_for_exit()
        assert manager.wait(_PATIENCE_S) == 1


def test_a_kill_is_set_only_where_it_could_be_done(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_confined(start_qemu)
    command = Command()
    with command.attached(qemu.pid, "--qmp", qemu.qmp_path):
        refused = command.run("policy", qemu.pid, "zero-read,kill")
        assert refused.returncode == 3
        assert "CAP_KILL" in refused.stderr
        assert "attach with --policy zero-read,kill" in refused.stderr
        assert command.ask("status", qemu.pid)["policy"] == "zero-read,observe"
        assert command.run("detach", qemu.pid).returncode == 0
    with command.attached(qemu.pid, "--qmp", qemu.qmp_path, "--policy", "kill"):
        for policy in ("observe", "zero-read,kill"):
            assert command.run("policy", qemu.pid, policy).returncode == 0
            assert command.ask("status", qemu.pid)["policy"] == policy


def test_the_monitor_is_reached_again_after_privileges_were_dropped(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_confined(start_qemu)
    command = Command()
    with command.attached(qemu.pid, "--qmp", qemu.qmp_path) as manager:
        cut_connection_of(manager.pid, qemu.qmp_path)

        def is_back() -> bool:
            done = command.run("events", qemu.pid, "--json").stdout
            return any(json.loads(line)["kind"] == "monitor-back" for line in done.splitlines())

        wait_until(is_back, "the monitor is lost")
    qemu.guest.ping()


def test_no_sandbox_keeps_everything(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    qemu = start_confined(start_qemu)
    command = Command()
    with command.attached(qemu.pid, "--no-sandbox") as manager:
        assert not command.ask("status", qemu.pid)["sandbox"]["on"]
        assert {thread["Seccomp"] for thread in threads_of(manager.pid)} == {"0"}
        ours = Path("/proc/self/status").read_text()
        assert all(f"CapEff:\t{thread['CapEff']}" in ours for thread in threads_of(manager.pid))


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        (Capability.BPF, ["CAP_SYS_PTRACE"]),
        # An event, and memory to be locked, for each thread that comes later.
        (Capability.IPC_LOCK, ["CAP_IPC_LOCK", "CAP_SYS_PTRACE", "CAP_PERFMON"]),
    ],
    ids=["bpf", "perf"],
)
def test_a_user_with_few_capabilities_enforces_another_users_guest(
    more: Capability,
    kept: list[str],
    start_qemu: Callable[[QemuOptions], Qemu],
    runtime: Path,
) -> None:
    qemu = start_confined(start_qemu)
    give_monitor(qemu)
    base = (Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH, Capability.PERFMON)
    command = user_with(runtime, *base, more)
    with (
        Trace(os.getpid(), by=TracedBy.BPF),  # another's must not blind perf
        command.attached(qemu.pid, "--qmp", qemu.qmp_path, TRUST) as manager,
    ):
        qemu.monitor.execute("object-add", qom_type="iothread", id="later")
        state = use(command, qemu)
        assert state["observer"] == "trace"
        assert state["uffd_method"] == "passed"
        assert state["sandbox"]["capabilities"] == kept
        assert {thread["Uid"].split()[1] for thread in threads_of(manager.pid)} == {str(UID)}
        done = command.run("verify", qemu.pid)
        assert done.returncode == 0, done.stdout + done.stderr
        assert command.run("detach", qemu.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0


def test_shared_memory_takes_one_more(
    start_qemu: Callable[[QemuOptions], Qemu], runtime: Path
) -> None:
    qemu = start_confined(start_qemu, SHARED_RAM)
    base = (Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH)
    with user_with(runtime, *base).attached(qemu.pid, TRUST):
        span = ("--gpa", hex(TAKEN.start), "--size", TAKEN.size_bytes)
        done = user_with(runtime).run("inflate", qemu.pid, *span, "--guest-agreed")
        assert done.returncode == 3
        assert "CAP_CHECKPOINT_RESTORE" in done.stderr
    command = user_with(runtime, *base, Capability.CHECKPOINT_RESTORE)
    with command.attached(qemu.pid, TRUST):
        state = use(command, qemu, follows=False)
        assert state["observer"] == "direct", "without CAP_PERFMON"
        assert state["sandbox"]["capabilities"] == ["CAP_SYS_PTRACE"]


def test_filters_that_cannot_be_read_are_told_by_doctor_and_attach_alike(
    start_qemu: Callable[[QemuOptions], Qemu], runtime: Path
) -> None:
    qemu = start_confined(start_qemu)
    base = (Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH)
    for verb in (("attach",), ("doctor", "--pid")):
        done = user_with(runtime, *base).run(*verb, qemu.pid)
        assert done.returncode == 3
        said = " ".join((done.stdout + done.stderr).split())
        assert "reading them takes CAP_SYS_ADMIN" in said
        assert TRUST in said
    with user_with(runtime, *base, Capability.SYS_ADMIN).attached(qemu.pid):
        pass
    qemu.guest.ping()


def test_doctor_says_which_capabilities_are_held_and_what_the_others_are_for(
    runtime: Path,
) -> None:
    command = user_with(runtime, Capability.SYS_PTRACE)
    probes = json.loads(command.run("doctor", "--json").stdout)["probes"]
    told = {p["name"]: p for p in probes if p["name"].startswith("CAP_")}
    assert {name for name, probe in told.items() if probe["ok"]} == {"CAP_SYS_PTRACE"}
    assert set(told) == {str(capability) for capability in Capability}
    for probe in told.values():
        assert probe["detail"].startswith("for: ")
        assert probe["ok"] or probe["fix"]


FEW = (Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH)
TMPFS_RAM = Memory(size_bytes=192 << 20, backing=Backing.TMPFS, share=True)


@pytest.mark.parametrize(
    "held",
    [
        (),
        (Capability.SYS_PTRACE,),
        FEW,
        (*FEW, Capability.CHECKPOINT_RESTORE),
        (*FEW, Capability.SYS_ADMIN),
        (Capability.SYS_PTRACE, Capability.DAC_OVERRIDE, Capability.CHECKPOINT_RESTORE),
    ],
    ids=lambda held: "+".join(capability.name.lower() for capability in held) or "none",
)
@pytest.mark.parametrize(
    ("memory", "inflates"),
    [
        (RAM, "attach, and inflate private memory"),
        (SHARED_RAM, "inflate shared memory (memfd)"),
        (TMPFS_RAM, "inflate shared memory in a file of another user's (tmpfs, hugetlbfs)"),
    ],
    ids=["private", "memfd", "tmpfs"],
)
def test_doctor_says_of_each_job_what_then_happens(
    held: tuple[Capability, ...],
    memory: Memory,
    inflates: str,
    start_qemu: Callable[[QemuOptions], Qemu],
    runtime: Path,
) -> None:
    other = Confinement(uid=65534, no_capabilities=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory, confinement=other))
    command = user_with(runtime, *held)
    doctor = command.run("doctor", "--json")
    told = json.loads(doctor.stdout)
    of_this = command.run("doctor", "--pid", qemu.pid)
    jobs = {probe["name"].removeprefix("another user's QEMU: "): probe for probe in told["probes"]}

    def check(done: subprocess.CompletedProcess[str], job: str) -> bool:
        assert (done.returncode == 0) == jobs[job]["ok"], done.stderr
        if done.returncode:
            assert done.returncode == 3
            hint = done.stderr.strip().splitlines()[-1]
            named = [word for word in hint.replace(",", " ").split() if word.startswith("CAP_")]
            assert named, "the error names the capability"
            assert all(name in jobs[job]["fix"] for name in named)
            assert not set(named) & {str(capability) for capability in held}
        return done.returncode == 0

    check(command.run("inspect", qemu.pid), "inspect")
    attach = "attach, and inflate private memory"
    can = jobs[attach]["ok"]
    assert ("The main job can be done." in command.run("doctor").stdout) == can
    assert doctor.returncode == told["exit_code"] == (0 if can else 3)
    assert of_this.returncode == doctor.returncode, of_this.stdout + of_this.stderr
    if not can:
        check(command.run("attach", qemu.pid), attach)
        return
    with command.attached(qemu.pid):
        span = ("--gpa", hex(TAKEN.start), "--size", TAKEN.size_bytes)
        check(command.run("inflate", qemu.pid, *span, "--guest-agreed"), inflates)
    qemu.guest.ping()


def test_a_guest_of_ones_own_takes_the_device_and_no_capability(
    start_qemu: Callable[[QemuOptions], Qemu], runtime: Path
) -> None:
    own = Confinement(uid=UID, no_capabilities=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=RAM, confinement=own))
    qemu.guest.fill(OWNED, SEED)
    without = user_with(runtime)
    assert without.run("doctor").returncode == 3
    assert without.run("attach", qemu.pid).returncode == 3
    device = runtime / "device"
    device.mkdir()
    script = (
        'mount -t tmpfs tmpfs "$0" && cp -a /dev/userfaultfd "$0/it" && chown "$1" "$0/it" && '
        'mount --bind "$0/it" /dev/userfaultfd && shift && exec "$@"'
    )
    wrap = ("unshare", "--mount", "--", "sh", "-c", script, str(device), str(UID))
    command = Command((*wrap, *without.prefix), without.environment)
    doctor = command.run("doctor")
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and scope.read_text().strip() != "0":
        assert "CAP_SYS_PTRACE (yama" in doctor.stdout
        return
    assert doctor.returncode == 0, doctor.stdout
    assert "of this user alone: lacks CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH" in doctor.stdout
    assert command.run("doctor", "--pid", qemu.pid).returncode == 0
    with command.attached(qemu.pid):
        use(command, qemu, follows=False)


def test_a_user_without_any_is_told_what_is_lacking(
    start_qemu: Callable[[QemuOptions], Qemu], runtime: Path
) -> None:
    qemu = start_confined(start_qemu)
    done = user_with(runtime).run("attach", qemu.pid)
    assert done.returncode == 3
    assert "CAP_SYS_PTRACE" in done.stderr
    assert "Traceback" not in done.stderr
    qemu.guest.ping()


def _where_run_has(made: str) -> Command:
    """The command in a mount namespace where /run has only that."""
    script = f'mount -t tmpfs none /run && {made} && exec "$@"'
    return Command(("unshare", "--mount", "--", "sh", "-c", script, "sh"))


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_control_directory_that_others_can_enter_is_refused(
    mode: int, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_confined(start_qemu)
    done = _where_run_has(f"mkdir /run/uffdballoon && chmod {mode:o} /run/uffdballoon").run(
        "attach", qemu.pid, "--qmp", qemu.qmp_path
    )
    assert done.returncode == 3
    assert "not ours alone" in done.stderr
    qemu.guest.ping()


def test_a_control_directory_of_another_user_is_refused(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_confined(start_qemu)
    made = f"mkdir -m 700 /run/uffdballoon && chown {UID}:{UID} /run/uffdballoon"
    done = _where_run_has(made).run("attach", qemu.pid, "--qmp", qemu.qmp_path)
    assert done.returncode == 3
    assert "not ours alone" in done.stderr


def test_another_user_cannot_talk_to_a_manager(
    start_qemu: Callable[[QemuOptions], Qemu], tmp_path: Path
) -> None:
    qemu = start_confined(start_qemu)
    command = Command()
    with command.attached(qemu.pid, "--qmp", qemu.qmp_path):
        for verb in ("status", "detach"):
            done = user_with(tmp_path).run(verb, qemu.pid)
            assert done.returncode == 3, done.stderr
            assert "not allowed" in done.stderr
        assert command.ask("status", qemu.pid)["state"] == "attached"


_UNDER_THE_SANDBOX = """
import asyncio, concurrent.futures, os, subprocess, sys, threading
from uffdballoon.host.privileges import enter_sandbox, keep_capabilities
from uffdballoon.host.process import read_memory
from uffdballoon.model.addresses import HvaRange

before = concurrent.futures.ThreadPoolExecutor(1)
before.submit(os.getpid).result()
other = os.getppid()
pidfd = os.pidfd_open(os.getpid())
keep_capabilities(())
enter_sandbox(os.getpid(), os.getpid(), pidfd, may_connect=False)

def refuses(act):
    try:
        act()
    except PermissionError:
        return
    except Exception as error:
        if getattr(error, "errno", None) == 1:
            return
        raise
    sys.exit(f"not refused: {act}")

def attempts():
    refuses(lambda: open("/dev/null", "w"))
    refuses(lambda: os.open("/tmp/of-the-sandbox", os.O_RDONLY | os.O_CREAT))
    refuses(os.fork)
    refuses(lambda: os.execv("/bin/true", ["true"]))
    refuses(lambda: subprocess.run(["true"]))
    refuses(lambda: os.kill(other, 0))
    refuses(lambda: os.pidfd_open(other))
    refuses(lambda: os.memfd_create("code"))
    refuses(lambda: os.mkdir("/tmp/of-the-sandbox"))
    refuses(lambda: os.chmod("/tmp", 0o777))
    refuses(lambda: read_memory(other, HvaRange.of(0x1000, 8)))
    import mmap
    refuses(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
    import socket
    refuses(lambda: socket.socket(socket.AF_INET))
    refuses(lambda: socket.socket(socket.AF_UNIX))

attempts()
before.submit(attempts).result()
with concurrent.futures.ThreadPoolExecutor(1) as after:
    after.submit(attempts).result()

async def sleeps():
    await asyncio.gather(*(asyncio.to_thread(asyncio.run, asyncio.sleep(0.01)) for _ in range(4)))
    return "goes on"

print(asyncio.run(sleeps()), open("/proc/self/comm").read())
"""


def test_the_sandbox_refuses_what_is_not_needed_and_python_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _UNDER_THE_SANDBOX], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("goes on")
