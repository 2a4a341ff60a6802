"""Clients of the REST API. They know only `schema` and `errors`, and run wherever Python does."""

from forgellm.sdk.client import ForgeLLMClient

__all__ = ["ForgeLLMClient"]
