"""Measurements that the documentation states; each module is a command."""
