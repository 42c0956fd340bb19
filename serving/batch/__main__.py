"""`python -m serving.batch`."""

from serving.batch.cli import run

run()
