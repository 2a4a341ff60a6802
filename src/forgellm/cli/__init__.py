"""The command line: one module a command, its dependencies imported inside."""
