"""A service as a program: flags, settings, one run."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable

from tokentrace import process
from tokentrace.settings import Settings, load

Service = Callable[[Settings, str, asyncio.Event], Awaitable[None]]


def arguments(tool: str, what: str) -> argparse.ArgumentParser:
    """The flags that every service has."""
    parser = argparse.ArgumentParser(prog=tool, description=what)
    parser.add_argument("--config", metavar="FILE", help="tokentrace.yml (default: ./tokentrace.yml if it is there)")
    parser.add_argument("--nats", metavar="URL", help="NATS server (default nats://127.0.0.1:4222)")
    parser.add_argument("--addr", metavar="HOST:PORT", help="where to listen; without a host this machine only")
    parser.add_argument("--data-dir", metavar="DIR", help="where to keep files (default ./tokentrace-data)")
    return parser


def run_service(tool: str, what: str, service: Service, *, port: int) -> int:
    """
    Read flags, environment and file, and run *service*.

    Returns:
        Exit code, as ``process.run``.
    """
    given = arguments(tool, what).parse_args()
    addr = given.addr or os.environ.get("TOKENTRACE_ADDR") or f":{port}"

    async def run(stopping: asyncio.Event) -> None:
        settings = load(given.config, overrides={"nats.url": given.nats, "storage.dir": given.data_dir})
        await service(settings, addr, stopping)

    return process.run(tool, run)
