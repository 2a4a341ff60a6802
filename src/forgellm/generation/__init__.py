"""Prompts, answers and conversations over a `GenerateEngine`."""
