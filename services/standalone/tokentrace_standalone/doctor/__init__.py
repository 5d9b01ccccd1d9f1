"""``tokentrace doctor``: shows what OTLP requests hold and what is made of them."""

from tokentrace_standalone.doctor.command import doctor

__all__ = ["doctor"]
