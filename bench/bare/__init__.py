"""Bare work, with which rows are compared: the same task with the underlying library only."""
