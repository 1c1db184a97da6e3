"""COLO's messages on the migration channel: distinguished, counted, held."""

from __future__ import annotations

import asyncio
import struct

from qmpshim.machine.colo.migration_channel import ColoMessage, MigrationChannel
from qmpshim.machine.host.workspace import Workspace

READY, REPLY, LOADED = (struct.pack(">I", number) for number in (0, 2, 6))
SHUT = struct.pack(">HHI", 1, 4, 0)  # a frame of the return path: MIG_RP_MSG_SHUT, 4 bytes


class Channel:
    """Both ends in our hands: a server plays the secondary, a client the primary."""

    def __init__(self, workspace: Workspace) -> None:
        self.link = MigrationChannel(workspace.path / "incoming", workspace.path / "channel")
        self._accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        self._path = workspace.path / "incoming"

    async def __aenter__(self) -> Channel:
        self._accepted = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accepted.put((reader, writer))

        self._server = await asyncio.start_unix_server(accept, str(self._path))
        await self.link.start()
        self.primary = await asyncio.open_unix_connection(str(self.link.path))
        self.secondary = await asyncio.wait_for(self._accepted.get(), 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.close()
        for end in (self.primary, self.secondary):
            end[1].transport.abort()
        self._server.close()

    async def events_of(self, length: int) -> bytes:
        return await asyncio.wait_for(self.primary[0].readexactly(length), 10)


def names(link: MigrationChannel) -> list[str]:
    return [message.spelling for message, _ in link.messages]


async def test_messages_after_frames_of_the_return_path(workspace: Workspace) -> None:
    async with Channel(workspace) as channel:
        writer = channel.secondary[1]
        sent = SHUT + READY + REPLY + LOADED
        for byte in sent:  # in the smallest pieces there are
            writer.write(bytes([byte]))
            await writer.drain()
        assert await channel.events_of(len(sent)) == sent
        assert names(channel.link) == ["checkpoint-ready", "checkpoint-reply", "vmstate-loaded"]
        assert channel.link.loaded == 1
        channel.primary[1].write(b"x" * 1000)
        assert await asyncio.wait_for(channel.secondary[0].readexactly(1000), 10)
        assert channel.link.sent == 1000


async def test_a_message_is_held(workspace: Workspace) -> None:
    async with Channel(workspace) as channel:
        link, writer = channel.link, channel.secondary[1]
        link.hold(ColoMessage.VMSTATE_LOADED)
        writer.write(READY + LOADED + REPLY)
        assert await link.until(lambda: link.waiting is ColoMessage.VMSTATE_LOADED, 10)
        assert await channel.events_of(4) == READY
        link.hold()
        link.release()
        assert await channel.events_of(8) == LOADED + REPLY
        assert link.waiting is None
        assert not await link.until(lambda: False, 0.01)


async def test_what_is_no_message_passes_and_is_kept(workspace: Workspace) -> None:
    async with Channel(workspace) as channel:
        strange = b"\x12\x34\x56\x78 no message"
        channel.secondary[1].write(READY + strange)
        assert await channel.events_of(4 + len(strange)) == READY + strange
        assert channel.link.strange == strange
        channel.secondary[1].close()
        assert await channel.primary[0].read() == b""
        assert await channel.link.until(lambda: channel.link.closed_by == "secondary", 10)
