"""Disciplines with one piece removed: what the explorer must convict, or it proves nothing.

Each :class:`Mutant` says which honest discipline it breaks and in which shipped scenarios that
shows.  The ones called historic are no inventions: real QEMU versions are like that.
"""

from qmpshim.model.mutants import commands, copies, filters, readers, requests, serialised
from qmpshim.model.mutants.register import SABOTAGES, Mutant

__all__ = [
    "SABOTAGES",
    "Mutant",
    "commands",
    "copies",
    "filters",
    "readers",
    "requests",
    "serialised",
]
