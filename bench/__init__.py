"""Benchmarks, run by ``make bench``: measures the rows of a table and checks their budgets (see ``row``)."""
