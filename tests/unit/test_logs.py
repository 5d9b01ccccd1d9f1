"""Logs of the server programs: one format for the loggers of tokentrace and of libraries. Each test runs a process."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

PROGRAM = """
import logging
import structlog
from tokentrace.service.logs import set_up_logging

set_up_logging("tokentrace_test", "info")
log = structlog.stdlib.get_logger("tokentrace.ours").bind(shard=3)
log.warning("messages %d to %d", 1, 7)
log.debug("not shown")
logging.getLogger("library").info("hello %s", "world", extra={"color_message": "\\x1b[1mhello"})
secret = "hunter2"
try:
    raise ValueError("broken")
except ValueError:
    log.exception("it failed")
logging.getLogger("httpx").info("POST https://example.invalid/secret")
"""


def run(program: str = PROGRAM) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_has_the_fixed_keys_first_and_then_the_bound_values() -> None:
    first, *_ = run()
    assert list(first) == ["time", "level", "tool", "logger", "message", "shard"]
    assert first["time"].endswith("Z")
    del first["time"]
    assert first == {
        "level": "warning",
        "tool": "tokentrace_test",
        "logger": "tokentrace.ours",
        "message": "messages 1 to 7",
        "shard": 3,
    }


def test_a_library_logs_in_the_same_format_without_a_coloured_copy_of_its_message() -> None:
    _, second, *_ = run()
    assert list(second) == ["time", "level", "tool", "logger", "message"]
    assert (second["level"], second["logger"], second["message"]) == ("info", "library", "hello world")


def test_an_exception_is_one_line_with_its_traceback() -> None:
    *_, last = run()
    assert (last["level"], last["message"], last["shard"]) == ("error", "it failed", 3)
    assert last["exception"].startswith("Traceback")
    assert last["exception"].endswith("ValueError: broken")


def test_debug_lines_and_the_urls_that_httpx_requests_are_not_logged() -> None:
    lines = run()
    assert len(lines) == 3
    assert not any("secret" in line["message"] for line in lines)


def test_a_module_that_logs_before_the_set_up_uses_the_standard_library() -> None:
    program = """
import structlog
import tokentrace.service.retry
structlog.stdlib.get_logger("tokentrace.ours").info("early")
structlog.stdlib.get_logger("tokentrace.ours").warning('{"early": true}')
"""
    assert run(program) == [{"early": True}]


def test_on_a_terminal_lines_are_text_and_tracebacks_show_no_values() -> None:
    reader, writer = pty.openpty()
    with os.fdopen(reader, "rb", buffering=0) as terminal:
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=writer, check=True, timeout=60)
        text = terminal.read(65536).decode()
        os.close(writer)
    assert "messages 1 to 7" in text
    assert "shard" in text
    assert "tokentrace.ours" in text
    assert "ValueError: broken" in text
    assert "hunter2" not in text
    assert not text.startswith("{")
