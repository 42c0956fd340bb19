"""The way into production: a version is served once it has been blessed, and can be taken back."""
