"""Is the candidate good enough, and is what serves still good."""
