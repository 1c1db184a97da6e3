"""A Debian build's programs as QEMU's own tests want them, directly and with the shim in between.

QEMU's tests run on the accelerator ``qtest``. Debian's binaries have it as a module, which the
packages leave out; so that one module is made from the source. Everything else is what people run.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upstream_source import Tree

from qmpshim.errors import HostError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import Build

_TOOLS = {
    "QEMU_IMG_PROG": "qemu-img",
    "QEMU_IO_PROG": "qemu-io",
    "QEMU_NBD_PROG": "qemu-nbd",
    "QSD_PROG": "qemu-storage-daemon",
}
_MODULE = "accel-qtest-x86_64.so"
_MODULE_SOURCES = ("accel/qtest/qtest.c", "module-common.c", "util/module-common.c")
_MODULES = "QEMU_MODULE_DIR"


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the programs are: one word each, under their usual names.

    :ivar direct: the emulator
    :ivar shim: what stands in for it, with that emulator behind it
    :ivar tools: the others, by the iotests' names for them
    """

    direct: Path
    shim: Path
    tools: Mapping[str, str]

    @classmethod
    def of(cls, build: Build, tree: Tree, place: Path, stand_in: Sequence[str] = ()) -> Programs:
        """Write the programs.

        :param place: where they go; a new directory
        :param stand_in: the command that is another stand-in than ours
        :raises HostError: the module cannot be made
        """
        modules = place / "modules"
        modules.mkdir(parents=True)
        for module in _module_directory(build).glob("*.so"):
            (modules / module.name).symlink_to(module)
        _make_module(build, tree, modules / _MODULE)
        env = {**build.env, _MODULES: str(modules)}
        direct = _wrapper(place / "direct" / builds.EMULATOR, build.command(), env)
        ours = stand_in or (f"{Path(sys.executable).parent}/qmpshim-qemu",)
        behind = {"QMPSHIM_BUILD": str(direct), **_bytecode(place / "bytecode")}
        shim = _wrapper(place / "shim" / builds.EMULATOR, ours, behind)
        tools = {
            variable: str(_wrapper(place / "direct" / tool, build.tool(tool), env))
            for variable, tool in _TOOLS.items()
        }
        return cls(direct, shim, tools)


def _bytecode(place: Path) -> dict[str, str]:
    """What lets Python keep bytecode, as where the tool is installed; else each start compiles."""
    if not sys.dont_write_bytecode:
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(place)}


def _wrapper(path: Path, command: Sequence[str], env: Mapping[str, str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    words = ["env", *(f"{name}={value}" for name, value in env.items()), *command]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return path


def _module_directory(build: Build) -> Path:
    if known := build.env.get(_MODULES):
        return Path(known)
    return Path("/usr/lib/x86_64-linux-gnu/qemu")


def _make_module(build: Build, tree: Tree, module: Path) -> None:
    """Make the accelerator as the tree would make it built in, and stamp it as the build's."""
    stamp = re.search(rb"qemu_stamp(_[0-9a-f]{40})\0", build.binary.read_bytes())
    if stamp is None:
        raise HostError(f"{build.binary} takes no modules: it is not as Debian makes it")
    commands = json.loads((tree.build / "compile_commands.json").read_text())
    built_in = next(one for one in commands if one["file"].endswith(_MODULE_SOURCES[0]))
    words = shlex.split(built_in["command"])
    words = words[: words.index("-MD")]
    words += ["-fPIC", "-DBUILD_DSO", "-DCONFIG_MODULES", f"-DCONFIG_STAMP={stamp[1].decode()}"]
    sources = [tree.source / name for name in _MODULE_SOURCES if (tree.source / name).exists()]
    try:
        subprocess.run(
            [*words, "-shared", "-o", str(module), *map(str, sources)],
            cwd=tree.build,
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise HostError(f"{module.name} cannot be made: {error.stderr.strip()[-500:]}") from None
