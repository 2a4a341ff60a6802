"""The libraries that compute, each in its own folder behind the protocols of `base`."""
