"""What the system knows, version by version."""
