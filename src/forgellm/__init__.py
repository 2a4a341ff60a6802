"""ForgeLLM: teach a language model your own documents, on your own machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forgellm.sdk import ForgeLLMClient

__version__ = "0.1.0"
__all__ = ["ForgeLLMClient", "__version__"]


def __getattr__(name: str) -> Any:
    """Brings the client when it is asked for, so that `import forgellm` stays light."""
    if name == "ForgeLLMClient":
        from forgellm.sdk import ForgeLLMClient

        return ForgeLLMClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
