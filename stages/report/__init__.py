"""The report that people look at: one HTML page, and Markdown for a pull request."""
