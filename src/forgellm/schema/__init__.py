"""Every wire and configuration type, defined once."""
