"""Stages of the DVC pipeline: each is a function of typed parameters and a small ``main``."""
