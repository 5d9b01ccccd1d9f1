"""Delivery of alert events to webhooks, Alertmanagers, Python callables and standard output."""

from tokentrace_alerter.delivery.callbacks import Callbacks, load_target
from tokentrace_alerter.delivery.channel import Channel, backoff_ns, compile_channel, idempotency_key, parse_channel
from tokentrace_alerter.delivery.payload import alertmanager_alert, alertmanager_labels, signature, webhook_body
from tokentrace_alerter.delivery.worker import DeliveryWorker

__all__ = [
    "Callbacks",
    "Channel",
    "DeliveryWorker",
    "alertmanager_alert",
    "alertmanager_labels",
    "backoff_ns",
    "compile_channel",
    "idempotency_key",
    "load_target",
    "parse_channel",
    "signature",
    "webhook_body",
]
