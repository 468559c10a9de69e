"""The web console: pages over the same functions as the HTTP API and the command line."""
