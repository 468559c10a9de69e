"""Measurements that print a table, or one JSON object with --json."""
