"""The HTTP routes that accept spans and messages: one file for each format, and what they share."""
