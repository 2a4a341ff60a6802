"""vLLM as a child process: a model of this machine, with adapters, served by it."""
