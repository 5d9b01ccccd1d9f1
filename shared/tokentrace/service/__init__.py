"""What every server program shares: the machine and its runner, snapshots, HTTP, start and stop."""
