"""``instrument`` finds the way in which a target is tracked, and says what it cannot track."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from google import genai
from google.genai import types

from tokentrace import Budget, BufferTransport, ConfigError, Tracer, instrument, uninstrument
from tokentrace.client.track import bedrock, google, litellm

_KEYS = {"region_name": "eu-west-1", "aws_access_key_id": "k", "aws_secret_access_key": "s"}


def _google() -> Any:
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url="http://127.0.0.1:9"))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_each_target_has_one_way() -> None:
    gemini, runtime, other = _google(), boto3.client("bedrock-runtime", **_KEYS), boto3.client("s3", **_KEYS)
    targets = [gemini, gemini.aio, genai, "google", runtime, other, "litellm", "nothing", None, 7, object()]
    found = [
        [way.__name__.rpartition(".")[2] for way in (google, litellm, bedrock) if way.accepts(one)] for one in targets
    ]
    assert found == [["google"]] * 4 + [["bedrock"], [], ["litellm"], [], [], [], []]


def test_a_client_gets_its_own_class_back() -> None:
    tracer = Tracer(BufferTransport())
    for client in (_google(), boto3.client("bedrock-runtime", **_KEYS)):
        own = type(client)
        assert instrument(client, tracer=tracer) is client
        assert instrument(client, tracer=tracer) is client
        assert isinstance(client, own)
        assert (type(client).__name__, type(client).__module__) == (own.__name__, own.__module__)
        uninstrument(client)
        uninstrument(client)
        assert type(client) is own


def test_what_cannot_be_tracked_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"'nothing' cannot be tracked; known are .*openai, anthropic, google, litellm"
    ):
        instrument("nothing")
    with pytest.raises(ConfigError, match="S3 cannot be tracked"):
        instrument(boto3.client("s3", **_KEYS))
    with pytest.raises(ConfigError, match="budget"):
        instrument("google", budget=Budget(1))
    with pytest.raises(ConfigError, match="the package litellm is not installed"):
        instrument("litellm")
