"""A guest on a real QEMU: prompt, commands, time-outs, panics, the console that is kept."""

from __future__ import annotations

import pytest

from qmpshim.errors import GuestFailed, GuestPanicked, InputError, MachineDied, MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.guest.guest import Guest, boot
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.workspace import Workspace


async def test_a_guest_runs_its_commands_and_its_panic_is_seen(
    image: GuestImage, workspace: Workspace, qemu_build: Build
) -> None:
    guest = await boot(qemu_build, image, workspace.path)
    try:
        _commands(guest)
        guest.send("sleep 1000")
        with pytest.raises(InputError, match="still runs"):
            guest.send("true")
        with pytest.raises(MachineHung, match=r"did not end in 0\.5 s; on the screen: .*still"):
            guest.finish(0.5)
    finally:
        await guest.close()
    assert "still here" in (workspace.path / "console.log").read_text()


def _commands(guest: Guest) -> None:
    assert guest.run("uname -r").output.strip() == guest.image.manifest["kernel"]
    assert guest.run("echo one; echo two").output == "one\ntwo\n"
    assert guest.run("printf 'no end of line'").output == "no end of line"
    assert guest.run("exit_with() { return 7; }; exit_with", check=False).status == 7
    with pytest.raises(GuestFailed, match=r"ls /nowhere ended with status 1: .*No such file"):
        guest.run("ls /nowhere")
    guest.run("x=kept")
    assert guest.run("echo $x").output == "kept\n"
    with pytest.raises(InputError, match="one line"):
        guest.run("true\ntrue")
    assert guest.run("echo still here").status == 0


async def test_a_kernel_panic_is_reported_as_one(
    image: GuestImage, workspace: Workspace, qemu_build: Build
) -> None:
    guest = await boot(qemu_build, image, workspace.path)
    try:
        with pytest.raises(GuestPanicked, match=r"gave up during .*sysrq triggered crash"):
            guest.run("echo c >/proc/sysrq-trigger")
    finally:
        await guest.close()
    assert "end Kernel panic" in (workspace.path / "console.log").read_text()


async def test_a_qemu_that_dies_under_a_guest_is_reported_as_that(
    image: GuestImage, workspace: Workspace, qemu_build: Build
) -> None:
    guest = Guest(qemu_build, image, workspace.path)
    try:
        await guest.start()
        guest.qemu.kill()
        with pytest.raises(MachineDied, match="killed by SIGKILL during 'the boot'"):
            guest.wait_for_prompt()
    finally:
        await guest.close()
