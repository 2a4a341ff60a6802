"""The routes around datasets. Those that start a job reply with its `job_id`, at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote

from forgellm.sdk.replies import Reply
from forgellm.sdk.transport import Transport


class DataRoutes(Transport):
    """`settings` are the fields of the request's body."""

    def dataset_info(self) -> Reply:
        return self._get("/api/dataset/info")

    def preview_dataset(
        self,
        name: str,
        *,
        model: str | None = None,
        max_seq_length: int | None = None,
        blocks: int | None = None,
    ) -> Reply:
        """Its documents with their tokens, and the first blocks as they would be trained on."""
        route = f"/api/datasets/{quote(name, safe='')}/preview"
        return self._get(route, model=model, max_seq_length=max_seq_length, blocks=blocks)

    def inspect_dataset(self, name: str, **settings: Any) -> Reply:
        """A job: every file with its tokens and language, and what cannot be used."""
        return self._start("inspect", name, settings)

    def dataset_stats(self, name: str, **settings: Any) -> Reply:
        """A job: totals, lengths in tokens, languages, duplicates."""
        return self._start("stats", name, settings)

    def find_duplicates(self, name: str, **settings: Any) -> Reply:
        """A job: texts that are the same or nearly so; nothing is removed."""
        return self._start("dedup", name, settings)

    def split_dataset(self, name: str, **settings: Any) -> Reply:
        """A job: how a run would split it, and what both sides share."""
        return self._start("split", name, settings)

    def prepare_dataset(self, name: str, **settings: Any) -> Reply:
        """A job: a cleaned copy, `<name>-prepared`."""
        return self._start("prepare", name, settings)

    def restore_dataset(self, name: str, removals: Sequence[str] | Literal["all"]) -> Reply:
        """A job: undo removals, given by their ids, in a prepared dataset."""
        chosen = removals if isinstance(removals, str) else list(removals)
        return self._start("restore", name, {"removals": chosen})

    def preparation(
        self, name: str, *, offset: int | None = None, limit: int | None = None
    ) -> Reply:
        """What a prepared dataset was made of, and what was left out."""
        route = f"/api/datasets/{quote(name, safe='')}/preparation"
        return self._get(route, offset=offset, limit=limit)

    def make_questions(self, dataset: str, name: str, **options: Any) -> Reply:
        """Start a job that makes a dataset of questions and answers with the loaded model.

        Options: `per_passage`, `limit`, `seed`, `known`, `max_tokens`.
        """
        body = {"dataset": dataset, "name": name, **options}
        return self._post("/api/dataset/questions", body)

    def _start(self, task: str, name: str, settings: dict[str, Any]) -> Reply:
        return self._post(f"/api/datasets/{quote(name, safe='')}/{task}", settings)
