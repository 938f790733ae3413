"""The web UI and its HTTP API."""
