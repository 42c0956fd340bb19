"""Measurements that the documentation states; each module is a command."""

import stages  # noqa: F401 - its settings are for TensorFlow, which modules here import before they import stages
