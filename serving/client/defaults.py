"""Where the server is if nobody says otherwise."""

__all__ = ["DEFAULT_MODEL", "DEFAULT_URL"]

DEFAULT_URL = "http://127.0.0.1:8501"
DEFAULT_MODEL = "magnetic-tiles"
