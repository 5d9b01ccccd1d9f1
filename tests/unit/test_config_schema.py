"""The JSON schema of the configuration: it equals the file in docs and agrees with the loader and README's tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from kit.environment import ROOT
from tokentrace.config import ENVIRONMENT, build, encode_schema, json_schema, parse_yaml
from tokentrace.errors import ConfigError

SCHEMA = json_schema()
#: ``jsonschema.validate`` would check the schema itself again for each file.
VALIDATOR = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
README = (ROOT / "README.md").read_text(encoding="utf-8")
VALID = [
    "",
    "nats:\nalerts:\n",
    "nats: {shards: 256, duplicate_window: 1h30m}",
    "nats: {shards: '${COUNT}', duplicate_window: '${WINDOW}'}",
    "http_server: {read_timeout: 0}",
    "http_server: {max_batch_size: '55', enabled: '${ON}'}",
    "transport: {type: '${KIND}', http: null, multi: [{type: stdout}]}",
    "alerts: [{name: a, metric: m, op: '>=', threshold: '${HIGH}', window: 1h, for: 5m, filter: {model: x}}]",
    "alert_delivery: {allow_hosts: [10.0.0.0/8]}",
    "custom_metrics: [{name: docs, type: sum, field: attr.documents}]",
    "pricing: {models: {m: {prompt_per_1m: 0.1, completion_per_1m: '12.5'}}}",
    "pricing: {models: {m: {free: true}}, local_providers: [box]}",
    "pricing: {models: {m: {units: {web_searches: {usd: 10, per: 1000}}, match: {prefix: m-}, provider: p}}}",
    "pricing: {models: {m: {prompt_per_1m: 1, completion_per_1m: 2, tiers: [{above_prompt_tokens: 9}]}}}",
]
VARIABLES = {"COUNT": "4", "WINDOW": "2m", "ON": "true", "KIND": "stdout", "HIGH": "0.5"}
INVALID = [
    "colour: red",
    "nats: {colour: red}",
    "nats: {shards: 0}",
    "nats: {shards: 257}",
    "nats: {shards: many}",
    "nats: {duplicate_window: soon}",
    "nats: {duplicate_window: 5}",
    "nats: {url: null}",
    "http_server: {ingest_path: spans}",
    "http_server: {max_batch_size: 0}",
    "transport: {type: kafka}",
    "transport: {http: {}}",
    "alerts: [{name: a}]",
    "alerts: [null]",
    "pricing: {models: {m: {prompt_per_1m: cheap, completion_per_1m: 1}}}",
    "pricing: {models: {m: {prompt_per_1m: 1, completion_per_1m: 1, tiers: [{prompt_per_1m: 1}]}}}",
    "pricing: {models: {m: {units: {web_searches: {usd: 1, per: 0}}}}}",
    "pricing: {models: {m: {free: maybe}}}",
    "redaction: {keys: secret}",
]


#: Path of a list or of a map by name -> what stands between it and the keys of its items.
SEPARATORS = {
    "alerts": "[].",
    "custom_metrics": "[].",
    "otlp.forward": "[].",
    "pricing.models": ".<model>.",
    "pricing.models.<model>.tiers": "[].",
    "pricing.models.<model>.units": ".<unit>.",
}


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """
    Return the schema of the object that *schema* refers to, also as an item or value; *schema* if it refers to none.

    For a union of objects, the result has the keys of all of them except the constant ones, such as ``type``.
    """
    objects = [option["$ref"] for option in schema.get("anyOf", []) if "$ref" in option]
    if len(objects) > 1:
        merged: dict[str, Any] = {}
        for reference in objects:
            merged |= SCHEMA["$defs"][reference.rpartition("/")[2]]["properties"]
        return {"properties": {name: key for name, key in merged.items() if "const" not in key}}
    for option in (schema, *schema.get("anyOf", [])):
        if "$ref" in option:
            return dict(SCHEMA["$defs"][option["$ref"].rpartition("/")[2]])
        if "items" in option and "$ref" in option["items"]:
            return resolve(option["items"])
        if isinstance(option.get("additionalProperties"), dict) and "$ref" in option["additionalProperties"]:
            return resolve(option["additionalProperties"])
    return schema


def keys_below(schema: dict[str, Any], parent: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, schema) of each key without keys below it, and of ``transport.multi``; *parent* begins each path."""
    for name, key in schema["properties"].items():
        path = f"{parent}{name}"
        inner = resolve(key)
        if path == "transport.multi" or "properties" not in inner:
            yield path, key
        else:
            separator = SEPARATORS.get(path, ".")
            yield from keys_below(inner, path + separator)


KEYS = dict(keys_below(SCHEMA, ""))


def rendered_default(path: str, key: dict[str, Any]) -> str:
    """Return the default of *key* as README's tables show it."""
    if "default" not in key:
        return "required"
    default = key["default"]
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if default in (None, "", [], {}):
        return "none"
    if path.endswith("_bytes"):
        return f"{default >> 30} GiB" if default >= 1 << 30 else f"{default >> 20} MiB"
    return f"`{default}`"


def test_the_checked_in_schema_is_the_generated_one() -> None:
    """``tokentrace config schema > docs/configuration.schema.json`` writes the file."""
    assert (ROOT / "docs" / "configuration.schema.json").read_text(encoding="utf-8") == encode_schema()


def test_the_schema_is_a_json_schema() -> None:
    VALIDATOR.check_schema(SCHEMA)


def test_every_key_has_a_description() -> None:
    assert len(KEYS) > 80
    assert [path for path, key in KEYS.items() if not key["description"].endswith(".")] == []


def test_the_sample_file_names_the_schema_for_editors_and_conforms_to_it() -> None:
    sample = ROOT / "deploy" / "tokentrace.yml"
    text = sample.read_text(encoding="utf-8")
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text.splitlines()[0])
    assert match is not None
    assert (sample.parent / match[1]).resolve() == ROOT / "docs" / "configuration.schema.json"
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", VALID)
def test_a_file_that_the_loader_accepts_conforms_to_the_schema(text: str) -> None:
    build(parse_yaml(text, "test.yml", VARIABLES), "test.yml")
    VALIDATOR.validate(yaml.safe_load(text) or {})


@pytest.mark.parametrize("text", INVALID)
def test_a_file_that_does_not_conform_to_the_schema_is_refused_by_the_loader(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(yaml.safe_load(text))
    with pytest.raises(ConfigError):
        build(parse_yaml(text, "test.yml", {}), "test.yml")


def test_transport_and_disk_days_are_marked_as_keys_for_client_programs() -> None:
    for described in (SCHEMA["properties"]["transport"], KEYS["retention.disk_days"]):
        assert described["description"].startswith("Client programs only: ")


def test_the_tables_of_the_readme_list_every_key_with_its_default_and_its_variable() -> None:
    settings = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
    tables = re.split(r"^(?:\|---)+\|$", settings, flags=re.MULTILINE)[1:]
    assert len(tables) == 2, "settings, and keys without effect"
    variable_of = {path: f"`{variable}`" for variable, path in ENVIRONMENT.items()}
    rows = {}
    for table, has_variables in zip(tables, (True, False), strict=True):
        for line in re.findall(r"^\| `(.+?)` \|(.*)\|$", table, re.MULTILINE):
            cells = [cell.strip() for cell in line[1].split("|")]
            assert line[0] not in rows, line[0]
            rows[line[0]] = (cells[0], cells[1] if has_variables else "")
    wanted = {
        path: (rendered_default(path, key), variable_of.get(path, ""))
        for path, key in KEYS.items()
        if not path.startswith("alerts[]")
    }
    assert rows == {"alerts": ("none", ""), **wanted}


def test_the_tables_of_the_readme_list_every_key_of_a_rule() -> None:
    alerts = README.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", alerts, re.MULTILINE) + re.findall(r"^\| `.+?\|(.+?)\|", alerts, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(cells)))
    keys = {path.rpartition(".")[2] for path in KEYS if path.startswith("alerts[]")} - {"type"}
    assert keys - named == set()
