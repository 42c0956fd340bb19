"""Serving: the thin client, its pre- and postprocessing, and the servers that it can talk to."""
