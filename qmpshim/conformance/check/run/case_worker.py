"""The process in which one case is done; its arguments are ORDER and DIR.

Reads a pickled :class:`~qmpshim.conformance.check.run.case_process.Order`, does the case in
``DIR/results`` and leaves the outcome beside it. Whatever goes wrong here costs this process.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from pathlib import Path

from qmpshim.codec import encode
from qmpshim.conformance.check.case import CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.run.case_process import OUTCOME, RESULTS, Order
from qmpshim.conformance.check.run.identity import another_build
from qmpshim.conformance.check.runners.kinds import load, timed
from qmpshim.conformance.compare.divergence import verdict_of
from qmpshim.errors import BuildError, MachineError, QmpshimError, UnsupportedFeature


def main() -> int:
    """Do the case."""
    order_file, directory = sys.argv[1:]
    order: Order = pickle.loads(Path(order_file).read_bytes())
    # A process maps more than it uses (QEMU a GiB and more at once); what is resident is watched
    # from outside, and this ends what grows too fast for that.
    limit = 2 * order.case.memory + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outcome = carry_out(order, Path(directory) / RESULTS)
    part = Path(directory) / f"{OUTCOME}.part"
    part.write_text(json.dumps(encode(outcome)))
    os.rename(part, Path(directory) / OUTCOME)
    return 0


def carry_out(order: Order, results: Path) -> CaseOutcome:
    """What the case shows, or why it shows nothing; its files go into *results*."""
    results.mkdir(exist_ok=True)
    try:
        if (found := another_build(order.build, order.identity)) is not None:
            return found
        outcome = timed(load(order.runner), order.build, order.case, results)
        # Swapped while the case ran: then it is not known what was tested.
        return another_build(order.build, order.identity) or outcome
    except (BuildError, UnsupportedFeature) as error:
        return CaseOutcome(Status.SKIPPED, str(error))
    except MachineError as error:
        return _misbehaved(error)
    except QmpshimError as error:
        return CaseOutcome(Status.BROKEN, str(error))
    except MemoryError:
        return CaseOutcome(Status.BROKEN, "the check itself ran out of memory")
    except OSError as error:
        return CaseOutcome(Status.BROKEN, f"{error.filename or ''}: {error.strerror}".lstrip(": "))


def _misbehaved(error: MachineError) -> CaseOutcome:
    """QEMU went wrong before the check could begin."""
    verdict = verdict_of(error)
    finding = CaseFinding(
        verdict, f"before the check begins: {verdict}", str(error), "a chain of disks", str(error)
    )
    return CaseOutcome(Status.DIVERGED, str(error), (finding,))
