"""The version of all packages and programs of tokentrace."""

__version__ = "0.1.0"
