"""Traces of requests and tasks: ASGI and WSGI applications, and Celery."""

from tokentrace.client.middleware.asgi import TraceMiddleware
from tokentrace.client.middleware.celery import instrument_celery
from tokentrace.client.middleware.wsgi import WsgiTraceMiddleware

__all__ = ["TraceMiddleware", "WsgiTraceMiddleware", "instrument_celery"]
