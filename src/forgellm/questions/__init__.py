"""Questions about a folder of documents: pairs to learn from, asked of a model, and probes without one."""
