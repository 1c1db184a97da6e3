"""Where cases are done: processes on this machine, or the workers of a Dask cluster.

An executor takes orders and gives deliveries, in whatever order they are ready. It decides
nothing: what is done is fixed in the orders, so the results are the same set wherever they were.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

from qmpshim.conformance.check.case import CaseOutcome, Status
from qmpshim.conformance.check.run.case_process import Cancelled, Delivery, Order, carry_out
from qmpshim.conformance.cluster import Cluster
from qmpshim.errors import ExecutorLost, QmpshimError

Started = Callable[[Order], None]


class Executor(Protocol):
    """Carries out orders."""

    def run(self, orders: Sequence[Order], started: Started) -> Generator[Delivery, None, None]:
        """Do all *orders*; each is delivered once. Closing the iterator ends what runs.

        :param started: called when one is begun (where that can be known)
        :raises HostError: nothing can be done any more
        """


class LocalExecutor:
    """Processes on this machine.

    :param jobs: at a time
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def run(self, orders: Sequence[Order], started: Started) -> Generator[Delivery, None, None]:
        """See :class:`Executor`."""
        cancelled = threading.Event()

        def here(order: Order) -> Delivery:
            if cancelled.is_set():
                raise Cancelled
            started(order)
            return carry_out(order, cancelled.is_set)

        with ThreadPoolExecutor(self._jobs) as pool:
            futures = [pool.submit(here, order) for order in orders]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                cancelled.set()


class DaskExecutor:
    """The workers of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def run(self, orders: Sequence[Order], started: Started) -> Generator[Delivery, None, None]:
        """See :class:`Executor`.

        :raises ExecutorLost: the scheduler, or the last of its workers, went away
        """
        calls = [lambda order=order: (order,) for order in orders]
        begun = lambda place: started(orders[place])  # noqa: E731
        for place, result in self._cluster.run(carry_out, calls, begun):
            try:
                yield result()
            except ExecutorLost:
                raise
            except QmpshimError as error:
                yield Delivery(orders[place].key, CaseOutcome(Status.BROKEN, str(error)))
