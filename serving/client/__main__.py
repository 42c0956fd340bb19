"""`python -m serving.client`."""

from serving.client.cli import run

run()
