"""Conversations: from rows of any shape to tokens, of which only the answers are learned."""
