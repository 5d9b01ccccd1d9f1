"""The same work with nothing around it: what the rows are compared with."""
