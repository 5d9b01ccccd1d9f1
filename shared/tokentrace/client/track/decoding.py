"""Content encodings: looking into an encoded body, and encoding it again where a part is left out."""

from __future__ import annotations

import zlib

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
#: Encodings that can be undone.
KNOWN = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})


class Decoder:
    """
    Undoes an encoding of ``KNOWN``, piece by piece.

    Args:
        encoding: Value of ``Content-Encoding``, in lower case.
    """

    def __init__(self, encoding: str) -> None:
        self._plain = encoding in ("", "identity")
        self._inflater = zlib.decompressobj(_GZIP if "gzip" in encoding else _ZLIB)
        self._is_first = encoding == "deflate"

    def decode(self, data: bytes) -> bytes:
        """
        Return the next piece of the body.

        Raises:
            zlib.error: *data* is not encoded so.
        """
        if self._plain:
            return data
        if self._is_first:
            # Some servers send deflate without its header, which clients accept.
            self._is_first = False
            try:
                return self._inflater.decompress(data)
            except zlib.error:
                self._inflater = zlib.decompressobj(_RAW)
        return self._inflater.decompress(data)


class Encoder:
    """Encodes as ``Decoder`` decodes; each piece can be decoded as soon as it arrives."""

    def __init__(self, encoding: str) -> None:
        self._plain = encoding in ("", "identity")
        self._deflater = zlib.compressobj(level=1, wbits=_GZIP if "gzip" in encoding else _ZLIB)

    def encode(self, data: bytes) -> bytes:
        """Return *data*, the next piece of the body, encoded."""
        if self._plain or not data:
            return data
        return self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """Return the bytes that end the body."""
        return b"" if self._plain else self._deflater.flush(zlib.Z_FINISH)
