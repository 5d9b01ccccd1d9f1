"""Transports are pickled as their arguments: in another process they start empty and connect anew."""

from __future__ import annotations

import pickle
from pathlib import Path

from kit.builders import make_span
from kit.receiver import Receiver, Reply
from tokentrace import (
    BufferTransport,
    FileTransport,
    HttpTransport,
    MultiTransport,
    NatsTransport,
    NoopTransport,
    StdoutTransport,
    Transport,
)
from tokentrace.redact import Redactor


def copy(transport: Transport) -> Transport:
    again: Transport = pickle.loads(pickle.dumps(transport))
    assert type(again) is type(transport)
    assert not any(again.stats())
    return again


def test_a_copy_of_a_file_transport_writes_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    transport = FileTransport(path, rotate=True, max_size_mb=0.001, redactor=Redactor(["badge"]))
    transport.send([make_span(attributes={"badge": "geheim"})])
    again = copy(transport)
    again.send([make_span(error="x" * 900, attributes={"badge": "geheim"})])
    transport.close()
    again.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert not any(b"geheim" in file.read_bytes() for file in files)


def test_a_copy_of_an_http_transport_posts_to_the_same_server_under_other_keys() -> None:
    with Receiver(lambda sent: Reply(202)) as server:
        transport = HttpTransport(server.url, headers={"X-Team": "a"}, batch_size=1)
        again = copy(transport)
        for one in (transport, again):
            one.send([make_span()])
            one.close()
    assert {sent.header("X-Team") for sent in server.sent} == {"a"}
    assert len({sent.key for sent in server.sent}) == 2


def test_copies_of_the_others_are_of_the_same_kind() -> None:
    buffer = BufferTransport()
    buffer.send([make_span()])
    copy(NoopTransport())
    copy(StdoutTransport(pretty=True))
    copy(NatsTransport("nats://127.0.0.1:4222", source="shop", project="a"))
    multi = copy(MultiTransport(buffer, NoopTransport()))
    assert isinstance(multi, MultiTransport)
    assert [type(child) for child in multi.children] == [BufferTransport, NoopTransport]
