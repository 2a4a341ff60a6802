"""What a model knows and how well it predicts, measured through `GenerateEngine.token_log_probs`."""
