"""
The YAML of the configuration file as plain data.

Only ``loader.parse_yaml`` imports this module, when there is a file: loading the YAML library takes 10 ms of a start.
"""

from __future__ import annotations

from typing import Any

import yaml

from tokentrace.errors import ConfigError, cut_quoted, shorten

#: What ``load`` raises for a text that is not YAML.
ERRORS: tuple[type[Exception], ...] = (yaml.YAMLError, ValueError, RecursionError)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that appears twice in a mapping; YAML would use the last one."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        mapping: yaml.MappingNode = super().compose_mapping_node(anchor)
        line_of: dict[str, int] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in line_of:
                raise ConfigError(f"line {line}: {shorten(key.value)}: the key is on line {line_of[key.value]} already")
            line_of[key.value] = line
        return mapping


def load(text: str) -> Any:
    """
    Return *text* as plain data; None if it is empty.

    Raises:
        ConfigError: A key appears twice in a mapping.
        One of ``ERRORS``: The text is not YAML.
    """
    return yaml.load(text, _Loader)  # a subclass of SafeLoader


def problem_of(error: Exception) -> str:
    """Return what is wrong and where; the text of *error* itself repeats the line, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return cut_quoted(str(error))
    at = error.problem_mark
    return f"line {at.line + 1}, column {at.column + 1}: {cut_quoted(error.problem or 'cannot be read')}"
