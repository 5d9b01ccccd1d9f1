"""The health check of the broker's container, ``deploy/nats-health``, against a real nats-server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from kit.broker import Broker
from kit.environment import ROOT
from kit.pipeline import free_port
from tokentrace.bus import jetstream, subjects

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(shutil.which("wget") is None, reason="there is no wget, as the container has one"),
]
#: Stands in for the ``nc`` of the container: sends what it reads, prints what arrives within *-w* seconds.
NC = textwrap.dedent(
    """\
    #!{python}
    import socket, sys, threading
    connection = socket.create_connection((sys.argv[-2], int(sys.argv[-1])), 5)
    connection.settimeout(3)
    def send():
        for chunk in iter(lambda: sys.stdin.buffer.read1(65536), b""):
            try:
                connection.sendall(chunk)
            except OSError:
                return
        connection.shutdown(socket.SHUT_WR)
    threading.Thread(target=send, daemon=True).start()
    try:
        while chunk := connection.recv(65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    except OSError:
        pass
    """
)
STREAMS = {subjects.RAW, subjects.SPANS, f"KV_{subjects.META}"}
LOGIN = 'authorization { user: "ann", password: "secret" }\n'
READERS_ONLY = """
authorization {
  users: [
    { user: "ann", password: "secret" }
    { user: "guest", password: "", permissions: { publish: "nothing.at.all" } }
  ]
}
no_auth_user: "guest"
"""


class Checked:
    """A broker, and its health check with a process in the place of the server that it may end."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.monitor = directory, free_port()
        self.broker = Broker(directory / "nats", extra=f'http: "127.0.0.1:{self.monitor}"\n')
        self.stand_in = subprocess.Popen(["sleep", "600"])
        (directory / "bin").mkdir()
        (directory / "bin" / "nc").write_text(NC.format(python=sys.executable))
        (directory / "bin" / "nc").chmod(0o755)

    async def make_streams(self, login: str = "") -> None:
        async with jetstream.connect(f"nats://{login}127.0.0.1:{self.broker.port}", name="test") as bus:
            for stream in subjects.streams():
                if stream.name in STREAMS:
                    await bus.ensure(stream)

    def restart(self, extra: str) -> None:
        self.broker.stop()
        self.broker.extra += extra
        self.broker.start()

    def check(self, wait_s: float = 2.0) -> int:
        """Run the health check, which waits *wait_s* for answers of the server, and return its exit code."""
        variables = {
            "PATH": f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PROBE_MONITOR_PORT": str(self.monitor),
            "PROBE_CLIENT_PORT": str(self.broker.port),
            "PROBE_SERVER_PID": str(self.stand_in.pid),
            "PROBE_DATA": str(self.broker.directory / "js"),
            "PROBE_NOTES": str(self.directory),
            "PROBE_WAIT_S": str(wait_s),
        }
        return subprocess.run(["sh", str(ROOT / "deploy" / "nats-health")], env=variables, timeout=60).returncode

    def stop(self) -> None:
        self.broker.stop()
        self.stand_in.kill()
        self.stand_in.wait()


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Checked]:
    running = Checked(tmp_path)
    running.broker.start()
    yield running
    running.stop()


async def test_a_broker_that_stores_the_probes_is_healthy(checked: Checked) -> None:
    assert checked.check() == 0
    await checked.make_streams()
    assert checked.check() == 0
    assert (checked.directory / "probed").exists()


@pytest.mark.parametrize("extra", [LOGIN, READERS_ONLY], ids=["login", "permissions"])
async def test_a_broker_that_refuses_the_probes_of_a_stranger_is_healthy_and_not_ended(
    checked: Checked, extra: str
) -> None:
    await checked.make_streams()
    checked.restart(extra)
    for _ in range(6):
        assert checked.check() == 0
    assert checked.stand_in.poll() is None


async def test_a_broker_whose_streams_take_nothing_is_ended_at_the_fifth_failure(checked: Checked) -> None:
    await checked.make_streams()
    # The streams are gone and their directory is back: nothing answers a probe.
    client = await nats.connect(checked.broker.url)
    for name in STREAMS:
        await client.jetstream().delete_stream(name)
    await client.close()
    (checked.broker.directory / "js" / "jetstream" / "$G" / "streams" / "TT_SPANS").mkdir(parents=True, exist_ok=True)
    for _ in range(4):
        assert checked.check(0.2) == 1  # no answer comes, however long the check waits
        assert checked.stand_in.poll() is None
    assert checked.check(0.2) == 1
    assert checked.stand_in.wait(10) != 0


def test_a_broker_that_is_gone_is_unhealthy(checked: Checked) -> None:
    checked.broker.stop()
    assert checked.check() == 1
    assert checked.stand_in.poll() is None
