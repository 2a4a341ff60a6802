"""An OpenAI-compatible server elsewhere, which answers in the place of models held here."""
