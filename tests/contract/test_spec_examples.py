"""Every example reply of the API reference, against the live replies while a real run trains.

`spec_examples.json` holds the reference's example objects by endpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.shelf import Shelf
from forgellm.web.app import create_app
from serving import eventually, served
from tiny_workspace import build_tiny_workspace, tiny_recipe

EXAMPLES: dict[str, Any] = json.loads(
    (Path(__file__).parent / "spec_examples.json").read_text("utf-8")
)
# What need not exist: other hardware, a library that is not installed, and the figures that a line
# of metrics is not about (its first has only a validation, most others have none).
NULLABLE = {
    "GET /api/health: system_info.mlx_version",
    "GET /api/dashboard/realtime: current_metrics.gpu_utilization",
    *(
        f"GET /api/dashboard/data: training_data[].{figure}"
        for figure in ("training_loss", "validation_loss", "learning_rate", "tokens_per_second")
    ),
    "GET /api/dashboard/data: training_data[].memory_usage_gb",
}
# Whole in the example only by chance.
FRACTIONAL = {"GET /api/training/status: eta_minutes"}


@pytest.fixture(scope="module")
def replies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx2.Response]]:
    """The reply to each endpoint, by the names of the examples."""
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("spec") / "workspace")
    (workspace.datasets / "readme.txt").write_text("Every folder here is a dataset.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(workspace.root / "no-cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        with (
            served(create_model_server(Shelf(workspace), GuardSettings())) as model_server,
            served(create_app(workspace, GuardSettings(), str(model_server.base_url))) as web,
        ):
            yield collect(web)


def collect(web: httpx2.Client) -> dict[str, httpx2.Response]:
    web.timeout = httpx2.Timeout(120)
    found: dict[str, httpx2.Response] = {}

    def ask(name: str, body: dict[str, Any] | None = None, query: str = "") -> Any:
        method, path = name.split()
        found[name] = web.request(method, path + query, json=body)
        return found[name].json()

    recipe = tiny_recipe(max_iterations=100_000, save_every=20, max_checkpoints=4)
    run = ask("POST /api/training/start", recipe.model_dump(exclude_unset=True))["output_dir"]
    try:
        eventually(lambda: len(web.get("/api/checkpoints").json()["checkpoints"]) > 2)
        ask("GET /api/training/status")
        checkpoints = ask("GET /api/checkpoints")["checkpoints"]
        ask("GET /api/dashboard/data", query=f"?training_dir={run}")
        ask("GET /api/dashboard/realtime")
        ask("GET /api/health")
        ask("GET /api/models")
        ask("GET /api/dataset/info")
        ask("GET /api/filesystem/browse", query="?path=dataset")
        ask("POST /api/model/load", {"model_name": "base/tiny", "adapter_path": run})
        ask("POST /api/model/generate", {"prompt": "What is the mill?", "max_tokens": 5})
        ask("GET /api/model/status")
        ask("POST /api/model/unload")
        found["error"] = web.post("/api/model/load", json={"model_name": "invalid-model"})
    finally:
        ask("POST /api/training/stop")
    kept = web.get("/api/checkpoints").json()["checkpoints"]
    assert checkpoints and kept
    ask(
        "POST /api/training/publish_checkpoint",
        {"checkpoint_path": kept[0]["path"], "training_dir": run},
    )
    return found


def differences(live: Any, example: Any, place: str) -> Iterator[str]:
    """What keeps `live` from having the shape of `example`. More keys than in it are welcome."""
    if live is None and place in NULLABLE:
        return
    if isinstance(example, dict) and isinstance(live, dict):
        separator = " " if place.endswith(":") else "."
        for name, value in example.items():
            if name in live:
                yield from differences(live[name], value, f"{place}{separator}{name}")
            else:
                yield f"{place}{separator}{name} is missing"
    elif isinstance(example, list) and isinstance(live, list):
        if example and not live:
            yield f"{place} is empty"
        for item in live if example else []:
            found = [list(differences(item, other, f"{place}[]")) for other in example]
            yield from min(found, key=len)
    elif not is_alike(live, example, place):
        yield f"{place} is {live!r}, not like {example!r}"


def is_alike(live: Any, example: Any, place: str) -> bool:
    if isinstance(example, float) or place in FRACTIONAL:
        return isinstance(live, int | float) and not isinstance(live, bool)
    if isinstance(example, str) and isinstance(live, str):
        return kind_of(live) == kind_of(example)
    return type(live) is type(example)


def kind_of(text: str) -> str:
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text):
        return "time"
    first = text.split("/", 1)[0]
    return first if first in ("models", "dataset", "cpt", "published") else "text"


@pytest.mark.parametrize("name", EXAMPLES)
def test_reply_has_the_shape_of_the_example(replies: dict[str, httpx2.Response], name: str) -> None:
    reply = replies[name]
    assert reply.status_code == (404 if name == "error" else 200), reply.text
    assert list(differences(reply.json(), EXAMPLES[name], f"{name}:")) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_reply_names_no_place_outside_the_workspace(
    replies: dict[str, httpx2.Response], name: str
) -> None:
    found = replies[name].json()
    found.pop(
        "response", None
    )  # what the model says is drawn at random, and may begin with a slash
    text = json.dumps(found, separators=(",", ":"))
    assert os.fspath(Path.home()) + "/" not in text
    assert "workspace/" not in text and '"/' not in text


def test_figures_are_of_the_run_that_trains(replies: dict[str, httpx2.Response]) -> None:
    status = replies["GET /api/training/status"].json()
    assert status["is_training"] is True
    share = 100 * status["current_iteration"] / status["max_iterations"]
    assert status["progress_percentage"] == pytest.approx(share, abs=0.01)
    realtime = replies["GET /api/dashboard/realtime"].json()
    assert realtime["is_training"] is True
    assert realtime["current_metrics"]["iteration"] >= status["current_iteration"] > 0
    data = replies["GET /api/dashboard/data"].json()
    assert data["training_config"]["model_name"] == "tiny"
    losses = [line["training_loss"] for line in data["training_data"] if line["training_loss"]]
    assert len(set(losses)) > 10
    memory = [line["memory_usage_gb"] for line in data["training_data"] if line["memory_usage_gb"]]
    assert data["performance_metrics"]["peak_memory_gb"] >= max(memory)


def test_checkpoints_are_ranked_by_their_loss(replies: dict[str, httpx2.Response]) -> None:
    found = replies["GET /api/checkpoints"].json()
    losses = [item["validation_loss"] for item in found["checkpoints"]]
    assert losses == sorted(losses)
    assert [item["rank"] for item in found["checkpoints"]] == list(range(1, len(losses) + 1))
    assert [item["is_best"] for item in found["checkpoints"]] == [True] + [False] * (
        len(losses) - 1
    )
    best = [item["iteration"] for item in found["checkpoints"][:3]]
    assert found["best_checkpoints"] == best


def test_a_wrong_type_a_missing_key_and_a_null_are_noticed() -> None:
    example = {"a": 1, "b": [{"c": 0.5, "t": "2025-01-15T10:30:00Z"}], "p": "models/x"}
    live = {"a": True, "b": [{"c": None, "t": "yesterday"}]}
    places = [found.split()[1] for found in differences(live, example, "x:")]
    assert places == ["a", "b[].c", "b[].t", "p"]
