"""One module per area of the REST API."""
