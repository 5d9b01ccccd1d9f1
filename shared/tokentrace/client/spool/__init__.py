"""The spool: batches on disk that could not be delivered. ``directory`` says how it works, ``files`` what it holds."""

from tokentrace.client.spool.directory import MAX_AGE_NS, Fsync, HeldDirectory, Spool, adoptable
from tokentrace.client.spool.files import Header, Record, SpoolFile, read_file

__all__ = ["MAX_AGE_NS", "Fsync", "Header", "HeldDirectory", "Record", "Spool", "SpoolFile", "adoptable", "read_file"]
