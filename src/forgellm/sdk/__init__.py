"""The Python client, which knows only schema and errors."""
