"""What a program loads when it imports the reporter, and what only when it sends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tokentrace import records

HEAVY = ["nats", "http.client", "numpy", "duckdb", "fastapi", "pydantic", "yaml", "structlog", "httpx", "nkeys"]


def loaded(program: str) -> set[str]:
    """Return which of HEAVY are loaded after *program*."""
    text = f"import sys\n{program}\nprint(*[name for name in {HEAVY} if name in sys.modules])\n"
    return set(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_reporter_loads_neither_what_sends_nor_records_of_other_services() -> None:
    program = "import sys\nfrom tokentrace import Reporter, Span\nprint(*sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "tokentrace.client.reporter.reporter" in modules
    unneeded = {"redact", "records.alert", "records.batch", "records.cut", "records.session", "client.spool"}
    assert not modules & {f"tokentrace.{name}" for name in (*unneeded, "client.reporter.sender", "redact.patterns")}


def test_every_name_of_the_records_can_be_imported_and_no_other() -> None:
    assert {name for name in records.__all__ if getattr(records, name) is not None} == set(records.__all__)
    assert set(dir(records)) == set(records.__all__)
    with pytest.raises(AttributeError, match="Spam"):
        getattr(records, "Spam")  # noqa: B009 - mypy knows that there is none


@pytest.mark.long
def test_importing_and_creating_a_reporter_loads_no_client_of_a_protocol() -> None:
    assert loaded("from tokentrace import Reporter, Span") == set()
    assert loaded("from tokentrace import Reporter; Reporter('x', 'nats://127.0.0.1').close()") == set()
    assert loaded("from tokentrace import Reporter; Reporter('x', 'https://127.0.0.1').close()") == set()


@pytest.mark.long
def test_the_first_span_loads_what_its_url_needs() -> None:
    program = (
        "from tokentrace import Reporter, Span\nwith Reporter('x', '{}') as r: r.report(Span(name='x', kind='tool'))"
    )
    assert loaded(program.format("nats://127.0.0.1:1")) == {"nats"}
    assert loaded(program.format("http://127.0.0.1:1")) == set()
