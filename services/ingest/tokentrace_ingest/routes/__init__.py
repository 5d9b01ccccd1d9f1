"""The HTTP ways in, one file for each form."""
