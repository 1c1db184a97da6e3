"""The workers of a ``dask.distributed`` cluster, or threads here: calls go out, results come back.

Each worker needs qmpshim, and the builds' files at the same paths. Which worker a call went to
decides nothing; the caller knows calls by their places.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

from qmpshim.errors import ExecutorLost, HostError, InputError, QmpshimError, WorkerLost

logger = logging.getLogger(__name__)

_GLANCE = 1.0  # seconds between two looks at which workers there are


class Cluster:
    """A connection to a cluster.

    :param address: of its scheduler, e.g. ``tcp://host:8786``
    :param patience: seconds to wait for it, and for workers where there are none any more
    :raises HostError: ``distributed`` is not installed, or nothing answers
    :raises InputError: that is no address
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
        if not self.workers:
            self.close()
            raise HostError(f"the Dask scheduler at {address} has no workers")

    @property
    def workers(self) -> int:
        """How many calls are made at a time."""
        threads: dict[str, int] = self._client.nthreads()
        return sum(threads.values())

    def run(
        self,
        function: Callable[..., Any],
        calls: Sequence[Callable[[], tuple[Any, ...]]],
        begun: Callable[[int], None] = lambda place: None,
    ) -> Generator[tuple[int, Callable[[], Any]], None, None]:
        """Call *function* once for each of the *calls*, as many at a time as there are workers.

        A worker that dies costs its call once more, on another one. Closing the iterator cancels
        what is under way.

        :param calls: each makes the arguments, when its turn comes
        :param begun: given the place of a call that goes out
        :returns: the places of the calls, in the order in which they end, each with a function that
            returns what the call returned, or raises what it raised: a QmpshimError, or WorkerLost
        :raises ExecutorLost: the scheduler, or the last of its workers, went away
        """
        waiting = iter(range(len(calls)))
        futures: dict[Any, int] = {}
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def give(most: int) -> None:
            for place in itertools.islice(waiting, most):
                # pure=False: the same call is not taken for made because it once was.
                future = self._client.submit(function, *calls[place](), pure=False, retries=0)
                futures[future] = place
                begun(place)
                future.add_done_callback(done.put)

        try:
            give(self.workers)
            while futures:
                future = self._next(done)
                place = futures.pop(future)
                yield place, partial(self._result, future)
                give(max(1, self.workers - len(futures)))
        except (OSError, RuntimeError, CancelledError) as error:
            raise self._gone() from error
        finally:
            if self._client.status == "running":
                with contextlib.suppress(OSError, RuntimeError, CancelledError):
                    self._client.cancel(list(futures), force=True)

    def _next(self, done: queue.SimpleQueue[Any]) -> Any:
        """The next future that is done.

        :raises ExecutorLost: there are no workers any more
        """
        for _ in self._while_there_are_workers():
            with contextlib.suppress(queue.Empty):
                return done.get(timeout=_GLANCE)

    def _result(self, future: Any) -> Any:
        """What a call returned, or raised. It may have been lost since with its worker; then it is
        made again.
        """
        for _ in self._while_there_are_workers():
            try:
                return future.result(timeout=_GLANCE)
            except QmpshimError:
                raise
            except self._distributed.KilledWorker as error:
                raise WorkerLost(f"the workers that had it were lost: {error}") from error
            except CancelledError as error:  # nothing here cancels while it waits
                raise self._gone() from error
            except (OSError, RuntimeError) as error:
                if future.status != "error":  # not ready, or the connection to a worker broke
                    continue
                text = f"the worker was lost: {type(error).__name__}: {error}"
                raise WorkerLost(text) from error

    def _while_there_are_workers(self) -> Iterator[None]:
        """Goes on as long as something may still come.

        :raises ExecutorLost: there are no workers any more, and none came for a while
        """
        alone_since: float | None = None
        while True:
            yield
            try:
                workers = self.workers
            except (OSError, RuntimeError, CancelledError):
                continue  # the connection is gone: then the futures are cancelled
            if workers:
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > self._patience:
                raise ExecutorLost(f"the Dask scheduler at {self._address} has no workers any more")

    def _gone(self) -> ExecutorLost:
        return ExecutorLost(f"the Dask scheduler at {self._address} went away")

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._client.close()


def spread(
    function: Callable[..., Any],
    calls: Sequence[Callable[[], tuple[Any, ...]]],
    jobs: int,
    cluster: Cluster | None,
) -> Iterator[tuple[int, Callable[[], Any]]]:
    """What :meth:`Cluster.run` gives, on a cluster or in threads here.

    :param function: here it is given one more argument, which returns whether the work is to end
    :param jobs: calls at a time here
    """
    if cluster is not None:
        yield from cluster.run(function, calls)
        return
    ended = threading.Event()

    def here(call: Callable[[], tuple[Any, ...]]) -> Any:
        return function(*call(), ended.is_set)

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(here, call): place for place, call in enumerate(calls)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result
        finally:
            ended.set()


def _silence() -> None:
    """Let ``distributed`` log nothing: what happens to the cluster is reported in one line."""
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
