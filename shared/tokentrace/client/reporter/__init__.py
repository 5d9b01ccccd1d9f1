"""The reporter: sends spans to a pipeline in the background. The docstring of ``reporter`` says how it works."""

from tokentrace.client.reporter.reporter import Reporter
from tokentrace.client.reporter.stats import Stats

__all__ = ["Reporter", "Stats"]
