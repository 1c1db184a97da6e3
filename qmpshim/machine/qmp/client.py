"""qemu.qmp's client, without the text that it makes of each message for a log of its own."""

from __future__ import annotations

from qemu.qmp import Message, QMPClient


class Client(QMPClient):
    """What qemu.qmp's hooks do by themselves is to render every message, indented, whether a log is
    kept or not: a list of nodes takes longer so than QEMU takes for it. What was sent and received
    is in the log of :class:`~qmpshim.machine.host.process.Qemu`.
    """

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg
