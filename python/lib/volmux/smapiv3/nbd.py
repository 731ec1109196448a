"""Writing to an NBD server: as much of the protocol as a copy needs. What the server sends is not trusted."""

from __future__ import annotations

import socket
import struct
from urllib.parse import parse_qs, unquote, urlsplit

from .failure import Failure, invalid

_MAGIC, _OPTION, _REPLY = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_FIXED, _NO_ZEROES = 1, 2
_GO, _ACK, _INFO, _EXPORT = 7, 1, 3, 0
_REQUEST, _ANSWER = 0x25609513, 0x67446698
_WRITE, _DISCONNECT, _FLUSH = 1, 2, 3
_READ_ONLY, _HAS_FLUSH = 2, 4
_LONGEST = 64 << 10
SECONDS = 60.0


def parse(uri: str) -> tuple[str | tuple[str, int], str]:
    """Address and export: of nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbd:unix:PATH:exportname=EXPORT."""
    if uri.startswith("nbd:unix:"):
        path, found, export = uri.removeprefix("nbd:unix:").partition(":exportname=")
        if path and found:
            return path, export
    parts = urlsplit(uri)
    export = unquote(parts.path.removeprefix("/"))
    paths = parse_qs(parts.query).get("socket", [])
    if parts.scheme == "nbd+unix" and len(paths) == 1:
        return paths[0], export
    if parts.scheme == "nbd" and parts.hostname:
        return (parts.hostname, parts.port or 10809), export
    # Not the URI itself: it may hold a password.
    raise invalid(f"a remote is a URI of NBD, and not of the scheme {parts.scheme or '(none)'}")


class Remote:
    """A connection to one export, for writing."""

    def __init__(self, address: str | tuple[str, int], export: str) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(SECONDS)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, SECONDS)
        try:
            self.size, self.flags = self._go(export.encode())
            if self.flags & _READ_ONLY:
                raise Failure("Remote", "the remote is for reading only")
        except BaseException:
            self.socket.close()
            raise

    def _go(self, export: bytes) -> tuple[int, int]:
        magic, option, flags = struct.unpack(">8s8sH", self._receive(18))
        if magic != _MAGIC or option != _OPTION or not flags & _FIXED:
            raise Failure("Remote", "the remote is no NBD server of today")
        self.socket.sendall(struct.pack(">I", flags & (_FIXED | _NO_ZEROES)))
        data = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self.socket.sendall(_OPTION + struct.pack(">II", _GO, len(data)) + data)
        found = None
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _REPLY or length > _LONGEST:
                raise Failure("Remote", "the remote answers with nonsense")
            answer = self._receive(length)
            if kind == _ACK and found is not None:
                return found
            if kind == _INFO and length >= 12 and answer[:2] == struct.pack(">H", _EXPORT):
                found = struct.unpack(">QH", answer[2:12])
            elif kind != _INFO:
                raise Failure("Remote", f"the remote refuses: {answer.decode(errors='replace') or hex(kind)}")

    def write(self, offset: int, data: bytes) -> None:
        self._request(_WRITE, offset, len(data), data)

    def close(self) -> None:
        """Makes what was written durable, and ends the connection."""
        if self.flags & _HAS_FLUSH:
            self._request(_FLUSH, 0, 0)
        self.socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        self.socket.close()

    def _request(self, kind: int, offset: int, length: int, data: bytes = b"") -> None:
        self.socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, kind, 0, offset, length) + data)
        magic, error, _ = struct.unpack(">IIQ", self._receive(16))
        if magic != _ANSWER or error:
            raise Failure("Remote", f"the remote failed at {offset}: error {error}")

    def _receive(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self.socket.recv(length - len(parts))
            if not part:
                raise Failure("Remote", "the remote ended the connection")
            parts += part
        return bytes(parts)
