"""Protocols with one part removed: mutants that the explorer must kill, or it proves nothing.

Each :class:`Mutant` names the correct protocol it breaks and the shipped scenarios that show it.
Some are as a QEMU version is: a comment names it.
"""

from qmpshim.model.mutants import commands, copies, filters, readers, requests, serialised
from qmpshim.model.mutants.register import MUTANTS, Mutant

__all__ = [
    "MUTANTS",
    "Mutant",
    "commands",
    "copies",
    "filters",
    "readers",
    "requests",
    "serialised",
]
