"""The configuration of every program: one schema for ``tokentrace.yml``, the environment and the flags."""

from tokentrace.config.alerts import (
    DELIVERIES,
    DELIVERY_MAX_RETRIES,
    DELIVERY_TIMEOUT,
    AlertmanagerDelivery,
    AlertRule,
    CustomDelivery,
    Delivery,
    HttpDelivery,
    StdoutDelivery,
    WebhookDelivery,
    parse_alert_rule,
    parse_delivery,
)
from tokentrace.config.custom_metrics import CustomMetric
from tokentrace.config.forward import ForwardTarget
from tokentrace.config.http_server import HttpServer
from tokentrace.config.loader import DEPRECATED, ENVIRONMENT, build, keys_without_effect, load, parse_yaml
from tokentrace.config.mist import Mist
from tokentrace.config.nats import Nats, own_shards
from tokentrace.config.otlp import Otlp
from tokentrace.config.pricing import ModelRate, Pricing
from tokentrace.config.redaction import Redaction
from tokentrace.config.retention import Retention
from tokentrace.config.schema import encode_schema, json_schema
from tokentrace.config.section import Duration
from tokentrace.config.settings import AlertDelivery, Settings
from tokentrace.config.storage import Storage
from tokentrace.config.transport import ChildTransport, FileTransport, HttpTransport, Transport

__all__ = [
    "DELIVERIES",
    "DELIVERY_MAX_RETRIES",
    "DELIVERY_TIMEOUT",
    "DEPRECATED",
    "ENVIRONMENT",
    "AlertDelivery",
    "AlertRule",
    "AlertmanagerDelivery",
    "ChildTransport",
    "CustomDelivery",
    "CustomMetric",
    "Delivery",
    "Duration",
    "FileTransport",
    "ForwardTarget",
    "HttpDelivery",
    "HttpServer",
    "HttpTransport",
    "Mist",
    "ModelRate",
    "Nats",
    "Otlp",
    "Pricing",
    "Redaction",
    "Retention",
    "Settings",
    "StdoutDelivery",
    "Storage",
    "Transport",
    "WebhookDelivery",
    "build",
    "encode_schema",
    "json_schema",
    "keys_without_effect",
    "load",
    "own_shards",
    "parse_alert_rule",
    "parse_delivery",
    "parse_yaml",
]
