"""
Loads structlog without rich.

structlog loads rich whenever it is installed, to color tracebacks, which takes 85 ms of every start. ``logs`` writes
plain tracebacks, because those of rich show variables. So rich is hidden while structlog is loaded.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, cast

_modules = cast("dict[str, Any]", sys.modules)
if "structlog" not in _modules:
    _rich = {name: _modules.pop(name) for name in list(_modules) if name.partition(".")[0] == "rich"}
    _modules["rich"] = None
    try:
        importlib.import_module("structlog")
    finally:
        del _modules["rich"]
        _modules.update(_rich)
