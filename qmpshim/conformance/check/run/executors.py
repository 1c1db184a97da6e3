"""Where cases are done: processes on this machine, or the workers of a Dask cluster.

An executor takes orders and gives deliveries, in whatever order they are ready. It decides
nothing: what is done is fixed in the orders, so the results are the same set wherever they were.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from typing import Any, Protocol

from qmpshim.conformance.check.case import CaseOutcome, Status
from qmpshim.conformance.check.run.case_process import Cancelled, Delivery, Order, carry_out
from qmpshim.errors import ExecutorLost, HostError, InputError, QmpshimError

logger = logging.getLogger(__name__)

Started = Callable[[Order], None]
_GLANCE = 1.0  # seconds between two looks at who works


class Executor(Protocol):
    """Does orders."""

    #: How many at a time, as far as is known.
    workers: int

    def run(self, orders: Sequence[Order], started: Started) -> Generator[Delivery, None, None]:
        """Do all *orders*; each is delivered once. Closing the iterator ends what runs.

        :param started: told when one is begun (where that can be known)
        :raises HostError: nothing can be done any more
        """


class LocalExecutor:
    """Processes on this machine.

    :param jobs: at a time
    """

    def __init__(self, jobs: int) -> None:
        self.workers = jobs

    def run(self, orders: Sequence[Order], started: Started) -> Generator[Delivery, None, None]:
        """See :class:`Executor`."""
        todo: queue.SimpleQueue[Order] = queue.SimpleQueue()
        done: queue.SimpleQueue[Delivery | BaseException] = queue.SimpleQueue()
        cancelled = threading.Event()
        for order in orders:
            todo.put(order)

        def work() -> None:
            # A case's process dies with the thread that started it, so the thread waits for it.
            while not cancelled.is_set():
                try:
                    order = todo.get_nowait()
                except queue.Empty:
                    return
                started(order)
                try:
                    done.put(carry_out(order, cancelled.is_set))
                except Cancelled:
                    return
                except BaseException as error:
                    done.put(error)
                    return

        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self.workers, len(orders)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in orders:
                delivery = done.get()
                if isinstance(delivery, BaseException):
                    raise delivery
                yield delivery
        finally:
            cancelled.set()
            for thread in threads:
                thread.join()


class DaskExecutor:
    """The workers of a ``dask.distributed`` cluster; each needs qmpshim and the builds' files.

    :param address: of its scheduler, e.g. ``tcp://host:8786``
    :raises HostError: ``distributed`` is not installed, or nobody answers
    """

    def __init__(self, address: str, patience: float = 10.0) -> None:
        try:
            import distributed
        except ImportError as error:
            raise HostError("--dask needs distributed: pip install 'qmpshim[dask]'") from error
        self._distributed: Any = distributed
        self._address, self._patience = address, patience
        if not logger.isEnabledFor(logging.DEBUG):
            _silence()
        try:
            self._client: Any = self._distributed.Client(address, timeout=patience)
        except ValueError as error:
            raise InputError(f"--dask {address}: {error}") from error
        except (OSError, TimeoutError) as error:
            raise HostError(f"no Dask scheduler at {address}: {error}") from error
        threads: dict[str, int] = self._client.nthreads()
        if not threads:
            self.close()
            raise HostError(f"the Dask scheduler at {address} has no workers")
        self.workers = sum(threads.values())

    def run(self, orders: Sequence[Order], started: Started) -> Generator[Delivery, None, None]:
        """See :class:`Executor`.

        :raises ExecutorLost: the scheduler, or the last of its workers, went away
        """
        futures: dict[Any, Order] = {
            # pure=False: the same order is not taken for done because it once was.
            self._client.submit(carry_out, order, pure=False, retries=0): order
            for order in orders
        }
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future, order in futures.items():
            started(order)
            future.add_done_callback(done.put)
        try:
            for _ in orders:
                future = self._next(done)
                order = futures[future]
                try:
                    yield future.result()
                except QmpshimError as error:
                    yield Delivery(order.key, CaseOutcome(Status.BROKEN, str(error)))
                except (OSError, RuntimeError) as error:  # KilledWorker is a RuntimeError's kin
                    text = f"the worker was lost: {type(error).__name__}: {error}"
                    yield Delivery(order.key, CaseOutcome(Status.BROKEN, text))
                except self._distributed.KilledWorker as error:
                    text = f"the workers that had it were lost: {error}"
                    yield Delivery(order.key, CaseOutcome(Status.BROKEN, text))
                except CancelledError as error:  # nobody here cancels while it waits
                    raise ExecutorLost(
                        f"the Dask scheduler at {self._address} went away"
                    ) from error
        finally:
            if self._client.status == "running":
                with contextlib.suppress(OSError, RuntimeError, CancelledError):
                    self._client.cancel(list(futures), force=True)

    def _next(self, done: queue.SimpleQueue[Any]) -> Any:
        """Wait for a future that is done, as long as somebody can work.

        :raises ExecutorLost: nobody can, and nobody came for a while
        """
        alone_since: float | None = None
        while True:
            with contextlib.suppress(queue.Empty):
                return done.get(timeout=_GLANCE)
            try:
                workers = self._client.nthreads()
            except (OSError, RuntimeError, CancelledError):
                continue  # the connection is gone: then the futures are cancelled
            if workers:
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > self._patience:
                raise ExecutorLost(f"the Dask scheduler at {self._address} has no workers any more")

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._client.close()


def _silence() -> None:
    """Let ``distributed`` log nothing: what happens to the cluster is told by us, in one line."""
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
