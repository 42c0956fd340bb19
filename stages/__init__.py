"""Stages of the DVC pipeline: each is a function of typed parameters and a small ``main``."""

import gc
import sys

from serving.onednn import use_onednn
from serving.quiet import quiet_imports

# TensorFlow's modules and the graphs it traces are a million objects that stay.
# Looking for garbage among them after each 700 new ones takes a fifth of a short stage.
gc.set_threshold(50_000, 20, 20)

use_onednn()

if sys.argv[0] == "-m":  # Python looks for the stage that it is to run; who imports stages gets Keras as ever
    quiet_imports()
