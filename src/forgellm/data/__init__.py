"""From files in `dataset/` to batches of tokens. No machine-learning library is imported here."""
