"""Metrics: what is asked of the aggregators, how their answers merge, and what each number means."""
