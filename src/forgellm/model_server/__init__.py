"""The server that holds the weights: load, generate, stream."""
