"""Readers of documents in other formats than plain text, and the bounded process they run in."""
