"""Stages of the DVC pipeline: each is a function of typed parameters and a small ``main``."""

import gc
import os
import platform

# TensorFlow's modules and the graphs it traces are a million objects that stay.
# Looking for garbage among them after each 700 new ones takes a fifth of a short stage.
gc.set_threshold(50_000, 20, 20)

# TensorFlow uses oneDNN by itself only on CPUs with AVX-512 for networks or AMX; it is faster with AVX2, too.
if platform.machine() == "x86_64":
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
