"""Which models exist, whether their files are safe to open, and what they are.

`catalog.hub` (downloads) and `catalog.gguf_import` are imported where they are used: they bring
an HTTP client and numpy, which a server that only lists models does not need.
"""

from forgellm.catalog.facts import ModelFacts, read_facts
from forgellm.catalog.find import ModelFolder, find_model
from forgellm.catalog.listing import ListedModel, list_models

__all__ = ["ListedModel", "ModelFacts", "ModelFolder", "find_model", "list_models", "read_facts"]
