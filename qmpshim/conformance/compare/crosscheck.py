"""The cross-check: three images and two views of a real chain against the model, all at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import (
    Evidence,
    InFiles,
    Returned,
    Runs,
    Unsound,
    owner_runs,
)
from qmpshim.conformance.compare.oracle import Oracle, View
from qmpshim.conformance.compare.overlay import read_overlay, wrong_allocation
from qmpshim.conformance.workload.pattern import Comparer, Mismatch, Recorded, mismatches
from qmpshim.errors import IOFailed
from qmpshim.machine.chain.secondary import SecondaryChain
from qmpshim.machine.host.files import Bytes, copy_sparse, file_extents, map_file
from qmpshim.machine.images.agreement import agree
from qmpshim.machine.images.image_view import ImageView
from qmpshim.machine.nbd.client import AT_ONCE, NbdClient
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import PAGE, Alloc, Image
from qmpshim.model.disks.image import Qcow2Image as ModelQcow2
from qmpshim.model.operations import Side
from qmpshim.model.units import SECTOR, touched

PAGE_BYTES = PAGE * SECTOR
_MOST = AT_ONCE
_SMALL = 1 << 20  # bytes of an image file that are worth remembering
_GAP = 3  # pages that are read along rather than making two requests of one


def merge(pages: Iterable[int], gap: int = 0) -> Iterator[tuple[int, int]]:
    """Runs (first page, pages) of a set of page numbers, in order; gaps up to *gap* are bridged."""
    first = end = -1
    for page in sorted(pages):
        if first >= 0 and page <= end + gap:
            end = page + 1
            continue
        if first >= 0:
            yield first, end - first
        first, end = page, page + 1
    if first >= 0:
        yield first, end - first


def pieces(
    pages: Iterable[int], size: int, most: int = _MOST, gap: int = 0
) -> Iterator[tuple[int, int]]:
    """Pages of a disk as requests: (offset, length) in bytes.

    :param size: of the disk
    :param most: bytes of one request
    :param gap: as for :func:`merge`
    """
    for first, count in merge(pages, gap):
        end = min((first + count) * PAGE_BYTES, size)
        for at in range(first * PAGE_BYTES, end, most):
            yield at, min(most, end - at)


def pages_of(extents: Iterable[tuple[int, int]]) -> set[int]:
    """The pages that byte ranges (offset, length) touch."""
    return {page for extent in extents for page in touched(*extent, PAGE_BYTES)}


def _stretches(view: ImageView) -> Iterator[tuple[int, memoryview]]:
    """All DATA of an image as (guest offset, bytes), in pieces worth comparing one by one.

    What lies in the file in one piece is not copied; fragments are gathered.
    """
    first = end = -1
    for piece in view.pieces():
        if piece.data is None or piece.alloc is not Alloc.DATA:
            continue
        fits = piece.offset == end and end + piece.length - first <= _MOST
        if first >= 0 and not fits:
            yield first, view.read(first, end - first).data
            first = -1
        if piece.length >= _MOST // 2:
            yield piece.offset, piece.data
        else:
            first = piece.offset if first < 0 else first
            end = piece.offset + piece.length
    if first >= 0:
        yield first, view.read(first, end - first).data


def _expected(wrong: Mismatch) -> Runs:
    return owner_runs([wrong.predicted] * wrong.count)


class CrossCheck:
    """Holds one real chain against its model.

    :param writers: by operation number, which side wrote it; distinguishes lost writes from leaks
    :param recorded: operations whose bytes are not those of the pattern
    """

    def __init__(
        self,
        chain: SecondaryChain,
        oracle: Oracle,
        writers: dict[int, str],
        qemu_img: Sequence[str] = ("qemu-img",),
        recorded: Recorded | None = None,
    ) -> None:
        self.chain = chain
        self.oracle = oracle
        self._writers = writers
        # Nothing waits for the tools until the next check, and QEMU is not to wait for them.
        self._qemu_img = ("nice", "-n", "19", *qemu_img)
        self._recorded = recorded
        self._comparer = Comparer(recorded)
        self._operation = 0
        self._agreed: set[bytes] = set()  # digests of small images the tools agreed about
        self._running: list[tuple[str, int, asyncio.Future[list[str]]]] = []

    @property
    def clusters(self) -> int:
        """Clusters' worth of bytes compared so far, begun ones included."""
        return -(-self._comparer.sectors * SECTOR // self.chain.spec.cluster)

    async def run(self, operation: int, touched: set[int] | None = None) -> list[Divergence]:
        """Compare everything there is, and stop at the first image or view that differs.

        :param operation: number of the operation that was last done
        :param touched: pages that may have changed; views are read there only, and what QEMU's
            tools and libqcow find in the images comes with the next check. ``None``: all, and now
        """
        found = await self._tools_found()
        self._operation = operation
        await self.chain.settle()
        nodes = [*self.chain.overlays]
        if self.chain.spec.secondary == "qcow2":
            nodes.insert(0, "secondary")
        for node in nodes:
            self._start_tools(node)
        if touched is None:
            found += await self._tools_found()
        for node in nodes:
            found += self.check_image(node)
        if "secondary" not in nodes:
            found += self._check_raw(touched)
        if not found:
            found += await self._check_views(touched)
        return found

    def _start_tools(self, node: str) -> None:
        """Have qemu-img, libqcow and our walker look at a copy of an image, beside what goes on."""
        path = self.chain.image(node)
        digest = b""
        if path.stat().st_size <= _SMALL:
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest in self._agreed:
                return  # the very same bytes: mostly an overlay that a checkpoint has emptied
        copy = path.with_name(f"{node}.{self._operation}.copy")
        copy_sparse(path, copy)
        running = asyncio.get_running_loop().run_in_executor(
            None, self._tools_disagree, copy, digest
        )
        self._running.append((node, self._operation, running))

    def _tools_disagree(self, copy: Path, digest: bytes) -> list[str]:
        try:
            faults = agree(copy, self._qemu_img)
        finally:
            copy.unlink()
        if digest and not faults:
            self._agreed.add(digest)
        return faults

    async def _tools_found(self) -> list[Divergence]:
        started, self._running = self._running, []
        found = await asyncio.gather(*(running for _, _, running in started))
        return [
            Divergence(
                Verdict.CORRUPTION,
                f"{node} disk (tools)",
                operation,
                "qemu-img, libqcow and our own reader agree",
                "; ".join(faults[:3]),
                evidence=Unsound(node),
            )
            for (node, operation, _), faults in zip(started, found, strict=True)
            if faults
        ]

    async def close(self) -> None:
        """Wait for what still looks at copies of images."""
        await asyncio.gather(*(running for _, _, running in self._running), return_exceptions=True)

    def _divergence(
        self,
        verdict: Verdict,
        where: str,
        predicted: str,
        observed: str,
        evidence: Evidence | None = None,
    ) -> Divergence:
        return Divergence(verdict, where, self._operation, predicted, observed, evidence=evidence)

    # -- the files ------------------------------------------------------------

    def _model(self, node: str) -> Image:
        image = getattr(self.oracle.chain, node)
        assert isinstance(image, Image)
        return image

    def check_image(self, node: str) -> Iterator[Divergence]:
        """What an overlay's image file shows that the model does not predict."""
        model = self._model(node)
        assert isinstance(model, ModelQcow2)
        where = f"{node} disk (file)"
        overlay, broken = read_overlay(map_file(self.chain.image(node)))
        if broken is not None:
            yield self._divergence(
                Verdict.CORRUPTION, where, broken.predicted, broken.observed, Unsound(node)
            )
        if overlay is None:
            return
        cluster = self.chain.spec.cluster
        if wrong := wrong_allocation(model.alloc, overlay.allocation, cluster):
            yield self._divergence(
                Verdict.ALLOCATION, where, wrong.predicted, wrong.observed, wrong.evidence(node)
            )
        for offset, data in _stretches(overlay.view):
            if differing := self._comparer.compare(data, model.contents, offset // SECTOR):
                yield self._content(node, differing)
                return

    def _check_raw(self, touched: set[int] | None) -> Iterator[Divergence]:
        model = self._model("secondary")
        path = self.chain.image("secondary")
        pages = set(model.contents.pages) if touched is None else touched
        stored = pages | pages_of(file_extents(path)) if touched is None else pages
        with path.open("rb") as file:
            for at, length in pieces(stored, self.chain.spec.size):
                piece = os.pread(file.fileno(), length, at)
                wrong = self._comparer.compare(piece, model.contents, at // SECTOR)
                if wrong:
                    yield self._content("secondary", wrong)
                    return

    def _content(self, node: str, wrong: list[Mismatch]) -> Divergence:
        first = wrong[0]
        verdict = Verdict.CONTENT
        writer = self._writers.get(abs(first.predicted))
        if (node, writer) in (("secondary", Side.PRIMARY), ("active", Side.GUEST)):
            verdict = Verdict.LOST_WRITE
        evidence = InFiles((node,), first.start, _expected(first))
        return self._differs(verdict, f"{node} disk (file)", wrong, evidence)

    def _differs(
        self, verdict: Verdict, where: str, wrong: list[Mismatch], evidence: Evidence
    ) -> Divergence:
        first = wrong[0]
        more = f" (and {len(wrong) - 1} more runs of sectors)" if len(wrong) > 1 else ""
        return self._divergence(verdict, where, first.prediction, f"{first.found}{more}", evidence)

    # -- through QEMU ------------------------------------------------------------

    async def _check_views(self, touched: set[int] | None) -> list[Divergence]:
        chain, oracle = self.chain, self.oracle
        if oracle.readable:
            with closing(chain.inspect("guest")) as client:
                found = self._check_view(
                    "guest", "guest's view", client, oracle.guest_view, touched
                )
            if found:
                return found
        if touched is None:
            with closing(chain.inspect("primary")) as client:
                found = self._check_view(
                    "primary",
                    "secondary disk (export)",
                    client,
                    oracle.primary_view,
                    touched,
                    Side.PRIMARY,
                )
            if found:
                return found
        if chain.spec.topology.export("guest").node == "hidden":
            return []  # the guest's view is the hidden disk
        async with chain.read_hidden() as client:
            where = "hidden disk (export)"
            return self._check_view("hidden", where, client, oracle.hidden_view, touched)

    def _check_view(
        self,
        export: str,
        where: str,
        client: NbdClient,
        view: View,
        touched: set[int] | None,
        side: Side = Side.GUEST,
    ) -> list[Divergence]:
        pages = touched if touched is not None else view.pages() | pages_of(client.data_extents())
        most = view.most * SECTOR if view.most else _MOST
        wanted = pieces(pages, self.chain.spec.size, most, _GAP)
        try:
            for offset, buffer in client.read_ahead(wanted):
                wrong = self._comparer.compare(buffer, view, offset // SECTOR)
                if wrong:
                    at = wrong[0].start * SECTOR - offset
                    verdict = self.read_verdict(side, wrong[0], buffer[at : at + SECTOR])
                    first = wrong[0]
                    evidence = Returned(export, first.start, _expected(first))
                    return [self._differs(verdict, where, wrong, evidence)]
        except IOFailed as error:
            return [
                self._divergence(Verdict.ERROR_CONTRACT, where, "a read that succeeds", str(error))
            ]
        return []

    def read_verdict(self, side: Side, wrong: Mismatch, sector: Bytes) -> Verdict:
        """What it means that a reader on *side* saw these bytes in the first wrong sector.

        Isolation is broken when they are what the secondary disk holds by now.
        """
        if self._writers.get(abs(wrong.predicted)) == side:
            return Verdict.LOST_WRITE
        if side is Side.PRIMARY:
            return Verdict.CONTENT
        current = self.oracle.primary_view.read(wrong.start, 1)
        differs = mismatches(sector, current, wrong.start, self._recorded)
        return Verdict.CONTENT if differs else Verdict.ISOLATION
