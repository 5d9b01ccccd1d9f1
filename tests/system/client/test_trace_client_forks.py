"""A ``TraceClient`` that is used before and after a fork: parent and child never read each other's answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kit.programs import assert_ended, run_program

PROGRAM = """
from tokentrace import TraceClient
client = TraceClient("key", "shop", url)
client.session_details("before")
ports = {client.session_details("before")["port"]}
child = os.fork()
name = "parent" if child else "child"
for number in range(60):
    asked = f"{name}-{number}"
    answer = client.session_details(asked)
    assert answer["path"] == f"/api/sessions/{asked}/details", answer
    ports.add(answer["port"])
print(name, *sorted(ports), flush=True)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


class Echo(BaseHTTPRequestHandler):
    """Answers with the path of the request and the port of the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path, "port": self.client_address[1], "messages": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def echo_url() -> Iterator[str]:
    """Start a server that answers as ``Echo`` does, and return its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_forked_child_opens_connections_of_its_own(echo_url: str) -> None:
    done = run_program(PROGRAM, echo_url, forks=True)
    assert_ended(done)
    ports = {line.split()[0]: set(line.split()[1:]) for line in done.stdout.splitlines()}
    assert len(ports["parent"]) == 1
    assert ports["parent"] < ports["child"]
    assert len(ports["child"]) == 2
