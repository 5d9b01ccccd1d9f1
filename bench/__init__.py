"""Budgets of DESIGN 9, measured: ``make bench``."""
