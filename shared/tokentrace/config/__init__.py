"""The configuration of every program: one schema for ``tokentrace.yml``, the environment and the flags."""

from tokentrace.config.custom_metrics import CustomMetric
from tokentrace.config.http_server import HttpServer
from tokentrace.config.load import DEPRECATED, ENVIRONMENT, build, keys_without_effect, load, parse_yaml
from tokentrace.config.mist import Mist
from tokentrace.config.nats import Nats, own_shards
from tokentrace.config.pricing import ModelRate, Pricing
from tokentrace.config.redaction import Redaction
from tokentrace.config.retention import Retention
from tokentrace.config.schema import encode_schema, json_schema
from tokentrace.config.section import Duration
from tokentrace.config.settings import AlertDelivery, AlertRule, Delivery, Settings
from tokentrace.config.storage import Storage
from tokentrace.config.transport import ChildTransport, FileTransport, HttpTransport, Transport

__all__ = [
    "DEPRECATED",
    "ENVIRONMENT",
    "AlertDelivery",
    "AlertRule",
    "ChildTransport",
    "CustomMetric",
    "Delivery",
    "Duration",
    "FileTransport",
    "HttpServer",
    "HttpTransport",
    "Mist",
    "ModelRate",
    "Nats",
    "Pricing",
    "Redaction",
    "Retention",
    "Settings",
    "Storage",
    "Transport",
    "build",
    "encode_schema",
    "json_schema",
    "keys_without_effect",
    "load",
    "own_shards",
    "parse_yaml",
]
