"""Dask clusters on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


@contextmanager
def local_cluster(place: Path, workers: int) -> Iterator[Any]:
    """So many worker processes of one thread each, whose files are in *place*."""
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"temporary-directory": str(place)}),
    ):
        patch.setenv("DASK_TEMPORARY_DIRECTORY", str(place))  # for the workers
        with distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as made:
            yield made
