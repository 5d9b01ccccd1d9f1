"""The HTTP routes that take spans and messages in, one file for each format."""
