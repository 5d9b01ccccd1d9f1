"""Searches for texts in all that a pipeline has written: files of streams and of the store, snapshots, and logs."""

from __future__ import annotations

import os
import subprocess
import textwrap
import zlib
from pathlib import Path

import duckdb

from kit.landing import broker_on
from tokentrace.bus import jetstream, subjects


def search(needles: dict[bytes, str], *places: Path) -> set[str]:
    """Return the descriptions, in *needles*, of the secrets that occur in the files below *places*."""
    listed = places[0].parent / "needles.txt"
    listed.write_bytes(b"\n".join(needles))
    command = ["grep", "-r", "-a", "-o", "-h", "-F", "-f", str(listed), *map(str, places)]
    searched = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    assert searched.returncode in (0, 1), searched.stderr
    listed.unlink()
    return {needles[needle] for needle in set(searched.stdout.split(b"\n")) if needle}


def dump_tables(files: list[Path], into: Path) -> None:
    """Write all values of all tables of the DuckDB *files* to one file."""
    with into.open("wb") as out:
        for file in files:
            with duckdb.connect(str(file), read_only=True) as database:
                tables = database.execute("SELECT table_name FROM duckdb_tables()").fetchall()
                for (table,) in tables:
                    for row in database.execute(f'SELECT * FROM "{table}"').fetchall():
                        out.write(repr(row).encode() + b"\n")
                        out.writelines(value for value in row if isinstance(value, bytes))


#: A ``sitecustomize`` that turns off the compression of DuckDB, so that the bytes of its files can be searched.
UNCOMPRESSED = textwrap.dedent(
    """
    import loopback_only
    loopback_only.install()
    import duckdb
    _connect = duckdb.connect
    def connect(*args, **kwargs):
        database = _connect(*args, **kwargs)
        database.execute("PRAGMA force_compression='uncompressed'")
        return database
    duckdb.connect = connect
    """
)


async def dump_snapshots(data: Path, directory: Path) -> int:
    """
    Write all objects of the bucket of snapshots in the data directory *data* to a file each, decompressed.

    Args:
        data: The data directory of a pipeline that has ended.
        directory: A folder that does not exist; the objects are written into ``objects`` there.

    Returns:
        The number of objects.
    """
    broker = broker_on(data, directory)
    broker.start()
    try:
        async with jetstream.connect(broker.url, name="search") as bus:
            bucket = bus.objects(subjects.SNAPSHOTS)
            names = await bucket.names()
            contents = [await bucket.get(name) or b"" for name in names]
    finally:
        broker.stop()
    (directory / "objects").mkdir()
    for number, content in enumerate(contents):
        (directory / "objects" / str(number)).write_bytes(_decompressed(content))
    return len(contents)


def _decompressed(content: bytes) -> bytes:
    """Return a piece of a snapshot as it was before it was compressed; a manifest is not compressed."""
    try:
        return zlib.decompress(content)
    except zlib.error:
        return content
