"""The server half of the NBD protocol, without I/O: bytes in, requests out; replies as bytes.

Everything here restates the NBD protocol document (``doc/proto.md`` of NetworkBlockDevice/nbd), a
module for each of its parts. :class:`.handshake.Handshake` leads one connection from the greeting
to the export it chose; :class:`.transmission.RequestParser` then cuts its byte stream into
requests. Both take bytes in pieces of any size. All offsets and lengths are bytes.
"""
