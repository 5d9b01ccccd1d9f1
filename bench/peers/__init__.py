"""Other systems of the kind, measured in one run with ours; each installs itself into an environment of its own."""
