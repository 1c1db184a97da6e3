"""What keeps the working directory out of ``sys.path`` and PATH, here and in processes of ours.

A module or program in the working directory may be anybody's. This module imports only
what the interpreter has loaded before it looks anywhere: it runs before the path is safe, which is
also why it has no ``from __future__`` line.
"""

import os
import sys

# Loads the package from the very place it was loaded from here, whatever else is installed.
_BOOT = """\
import sys
root, module, length, *rest = sys.argv[1:]
sys.path[:], sys.argv[:] = rest[: int(length)], [module, *rest[int(length) :]]
import importlib.util as importing, runpy
spec = importing.spec_from_file_location(
    "qmpshim", root + "/__init__.py", submodule_search_locations=[root]
)
sys.modules["qmpshim"] = package = importing.module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def package_root() -> str:
    """The directory that ``qmpshim`` was imported from."""
    place = os.path.abspath(__file__)  # machine/host/safe_path.py in it
    for _ in range(3):
        place = os.path.dirname(place)
    return place


def import_path() -> list[str]:
    """``sys.path`` without the working directory, except where an absolute path names it.

    Python puts it there, or the script's directory, as the first entry (unless it runs with
    ``-P``), and for every empty or relative entry of PYTHONPATH.
    """
    entries = list(sys.path)
    here = os.getcwd()
    script = os.path.dirname(os.path.abspath(sys.argv[0] if sys.argv else ""))
    if entries and not sys.flags.safe_path and entries[0] in ("", here, script):
        del entries[0]
    if not sys.flags.ignore_environment:
        named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        for _ in [one for one in named if not os.path.isabs(one) and os.path.abspath(one) == here]:
            if here in entries:
                entries.remove(here)
    return [one for one in entries if os.path.isabs(one)]


def program_path() -> str:
    """PATH without its empty and relative entries, which mean the working directory."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(one for one in entries if os.path.isabs(one))


def leave_out_working_directory() -> None:
    """Make this process's ``sys.path`` and PATH safe: the first thing that an entry point does.

    Where the package itself is in the working directory, it stays importable, as the last choice.
    """
    entries = import_path()
    home = os.path.dirname(package_root())
    if home in sys.path and home not in entries:
        entries.append(home)
    sys.path[:] = entries
    os.environ["PATH"] = program_path()


def python_script(script: str) -> list[str]:
    """The command line that runs a script which imports nothing of ours."""
    return [sys.executable, "-I", script]


def our_python(module: str, *words: str) -> list[str]:
    """The command line that runs a module of this package in a Python of its own.

    Nothing is imported from the working directory, whatever PYTHONPATH holds: the process has the
    import path of this one, and the package from where this one has it.

    :param module: e.g. ``qmpshim.machine.host.fork_server``
    :param words: its arguments
    """
    path = import_path()
    return [
        *(sys.executable, "-I", "-c", _BOOT),
        *(package_root(), module, str(len(path)), *path),
        *words,
    ]
