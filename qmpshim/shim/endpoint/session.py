"""One client's side of the QMP protocol, without I/O: bytes in, work out, in QEMU's order.

Restates QEMU 7.2 ``monitor/qmp.c`` (``handle_qmp_command``, the request queue and when a monitor
is suspended) and ``qapi/qmp-dispatch.c`` (``qmp_dispatch_check_obj``). What a command answers is
never restated: a well-formed command goes to the real QEMU, which answers for itself.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from qmpshim.shim.json.grammar import Dialect, Malformed, Parsed
from qmpshim.shim.json.stream import JsonStream
from qmpshim.shim.json.text import Value, as_qemu_writes

QUEUE_LENGTH = 8  # in-band requests QEMU reads ahead with OOB (QMP_REQ_QUEUE_LEN_MAX)
GENERIC = "GenericError"
NOT_FOUND = "CommandNotFound"
_NEGOTIATE = "Expecting capabilities negotiation with 'qmp_capabilities'"
_BUCKETS = 512
_USUAL = frozenset({"execute", "arguments", "id"})


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that is answered here: the reply, ready to send; in band unless *oob*."""

    reply: bytes
    oob: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A well-formed request.

    :ivar arguments: None when the request had none
    :ivar id: the client's id as QEMU would print it, None when the request had none
    :ivar oob: whether it is to be executed out of band
    """

    name: str
    arguments: dict[str, Value] | None
    id: bytes | None
    oob: bool


Work = Answer | Command


def error_reply(error_class: str, desc: str, id_: bytes | None = None) -> bytes:
    """An error as QEMU would send it."""
    error = json.dumps({"class": error_class, "desc": desc}).encode()
    head = b"{" if id_ is None else b'{"id": ' + id_ + b", "
    return head + b'"error": ' + error + b"}\r\n"


def return_reply(value: object, id_: bytes | None = None) -> bytes:
    """A success as QEMU would send it."""
    tail = b"}\r\n" if id_ is None else b', "id": ' + id_ + b"}\r\n"
    return b'{"return": ' + json.dumps(value).encode() + tail


def _bucket(key: str) -> int:
    """Where QEMU's dictionary keeps *key* (``tdb_hash`` in ``qobject/qdict.c``)."""
    text = key.encode("utf-8").replace(b"\0", b"\xc0\x80")
    value = 0x238F13AF * len(text)
    for index, byte in enumerate(text):
        value += byte << (index * 5 % 24)
    return (1103515243 * value + 12345) % (1 << 32) % _BUCKETS


def _in_qemus_order(request: dict[str, Value]) -> Iterator[str]:
    """The members as QEMU's dictionary lists them: it reports the first that is wrong."""
    youngest_first = list(request)[::-1]  # within a bucket; sorting is stable
    yield from sorted(youngest_first, key=_bucket)


def _fault(request: dict[str, Value], oob_allowed: bool) -> str | None:
    """What QEMU finds wrong with a request's members (``qmp_dispatch_check_obj``)."""
    if (  # nearly always
        isinstance(request.get("execute"), str)
        and isinstance(request.get("arguments", request), dict)
        and request.keys() <= _USUAL
    ):
        return None
    verb: str | None = None
    for member in _in_qemus_order(request):
        value = request[member]
        if member == "execute" or (member == "exec-oob" and oob_allowed):
            if not isinstance(value, str):
                return f"QMP input member '{member}' must be a string"
            if verb is not None:
                return f"QMP input member '{member}' clashes with '{verb}'"
            verb = member
        elif member == "arguments":
            if not isinstance(value, dict):
                return "QMP input member 'arguments' must be an object"
        elif member != "id":
            return f"QMP input member '{member}' is unexpected"
    return None if verb else "QMP input lacks member 'execute'"


class Session:
    """What QEMU knows about one monitor connection.

    Feed it bytes; take work with :meth:`next`, and call :meth:`done` when it has been answered.
    Out-of-band work overtakes what is queued, and QEMU reads on only when it is done.

    :param dialect: which of QEMU's parsers this QEMU has
    :param coarse: whether it prints doubles with six decimals
    """

    def __init__(self, dialect: Dialect = Dialect.CLASSIC, coarse: bool = False) -> None:
        self._coarse = coarse
        self.negotiated = False
        self.oob = False
        self.busy = False  # an in-band request is being answered
        self._stream = JsonStream(dialect)
        self._chunks: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._waiting = 0  # bytes in _chunks
        self._fds: tuple[int, ...] = ()
        self._queue: deque[Parsed | Malformed] = deque()
        self._urgent: Work | None = None
        self._suspended = False
        self._oob_busy = False
        self._was_oob = False  # whether OOB was on when the request being answered was taken

    def feed(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Take bytes, and the file descriptors that came with the first of them."""
        self._chunks.append((data, fds))
        self._waiting += len(data)

    @property
    def waiting(self) -> int:
        """Bytes taken and not parsed yet: the reader should hold its horses when they are many."""
        return self._waiting + self._stream.waiting

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do with what was fed so far."""
        return not (self.busy or self._oob_busy or self._queue or self.waiting)

    def next(self, in_band: bool = True) -> Work | None:
        """The next request to answer, or None for now.

        :param in_band: whether in-band requests may be taken
        """
        self._parse()
        if self._urgent is not None:
            work, self._urgent = self._urgent, None
            return work
        if not in_band or self.busy or not self._queue:
            return None
        item = self._queue.popleft()
        self.busy = True
        self._was_oob = self.oob
        if self.oob and len(self._queue) == QUEUE_LENGTH - 1:
            self._suspended = False
        return self._work(item)

    @property
    def wants_turn(self) -> bool:
        """Whether an in-band request waits to be taken."""
        self._parse()
        return bool(self._queue) and not self.busy

    def done(self, oob: bool = False) -> None:
        """The request taken last, in band or out of band, has been answered."""
        if oob:
            self._oob_busy = False
            return
        self.busy = False
        if not self._was_oob:
            self._suspended = False

    def take_fd(self) -> int | None:
        """The descriptor a command may use now; the session keeps owning it."""
        return self._fds[0] if self._fds else None

    def drop_fds(self) -> None:
        """Close what descriptors came with the last bytes: they were used, or the client left."""
        for fd in self._fds:
            os.close(fd)
        self._fds = ()

    def close(self) -> None:
        """The client is gone: forget what it wanted, and close its descriptors."""
        self.drop_fds()
        for _, fds in self._chunks:
            self._fds = fds
            self.drop_fds()
        self._chunks.clear()
        self._queue.clear()
        self._urgent = None
        self._waiting = 0
        self._stream = JsonStream()

    def _parse(self) -> None:
        while not self._suspended and not self._oob_busy:
            item = self._stream.next()
            if item is None:
                if not self._chunks:
                    return
                data, fds = self._chunks.popleft()
                self._waiting -= len(data)
                if fds:  # a character device keeps the latest only
                    self.drop_fds()
                    self._fds = fds
                self._stream.feed(data)
            elif self._is_oob(item):
                self._oob_busy = True
                self._urgent = self._work(item)
            else:
                self._queue.append(item)
                self._suspended = not self.oob or len(self._queue) == QUEUE_LENGTH

    @staticmethod
    def _is_oob(item: Parsed | Malformed) -> bool:
        """Executed where it is read, whether or not OOB is on (``qmp_is_oob``)."""
        return (
            isinstance(item, Parsed)
            and isinstance(item.value, dict)
            and "exec-oob" in item.value
            and "execute" not in item.value
        )

    def _work(self, item: Parsed | Malformed) -> Work:
        if isinstance(item, Malformed):
            return Answer(error_reply(GENERIC, item.desc))
        request = item.value
        if not isinstance(request, dict):
            return Answer(error_reply(GENERIC, "QMP input must be a JSON object"))
        id_ = as_qemu_writes(request["id"], self._coarse) if "id" in request else None
        oob = self._is_oob(item)
        fault = _fault(request, self.oob)
        if fault is not None:
            return Answer(error_reply(GENERIC, fault, id_), oob)
        name = request["exec-oob" if oob else "execute"]
        arguments = request.get("arguments")
        assert isinstance(name, str) and (arguments is None or isinstance(arguments, dict))
        if not self.negotiated and name != "qmp_capabilities":
            return Answer(error_reply(NOT_FOUND, _NEGOTIATE, id_), oob)
        return Command(name, arguments, id_, oob)
