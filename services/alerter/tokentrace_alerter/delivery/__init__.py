"""Delivery of alert events to channels."""

from tokentrace_alerter.delivery.allowed_hosts import AllowedHosts, parse_address
from tokentrace_alerter.delivery.callbacks import Callbacks, load_target
from tokentrace_alerter.delivery.channel import (
    Channel,
    backoff_ns,
    body_of,
    key_of,
    labels_of,
    parse_channel,
    pushed,
    signed,
)
from tokentrace_alerter.delivery.worker import DeliveryWorker

__all__ = [
    "AllowedHosts",
    "Callbacks",
    "Channel",
    "DeliveryWorker",
    "backoff_ns",
    "body_of",
    "key_of",
    "labels_of",
    "load_target",
    "parse_address",
    "parse_channel",
    "pushed",
    "signed",
]
