"""Stages of the DVC pipeline: each is a function of typed parameters and a small ``main``."""

import gc

from serving.onednn import use_onednn

# TensorFlow's modules and the graphs it traces are a million objects that stay.
# Looking for garbage among them after each 700 new ones takes a fifth of a short stage.
gc.set_threshold(50_000, 20, 20)

use_onednn()
