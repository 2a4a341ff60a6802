"""The OpenAI-compatible API: a real tiny model, a real server, the unmodified `openai` client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from openai.types import completion_create_params as text_parameters
from openai.types.chat import completion_create_params as chat_parameters
from transformers import AutoModelForCausalLM

from forgellm import supervisor
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import OutOfMemory
from forgellm.generation.loading import Source
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app
from forgellm.model_server.loading import LoadedModel, open_model
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.training.session import Session
from forgellm.web.app import create_app as create_web_app
from serving import PATIENCE_SECONDS, eventually, served
from tiny_workspace import build_tiny_workspace, build_two_models, tiny_recipe

TINY = "base/tiny"
TEXT = "The mill stands where two rivers meet 🐢."
MESSAGES: list[Any] = [
    {"role": "developer", "content": "Count the sacks."},
    {"role": "user", "content": [{"type": "text", "text": "What is the mill for?"}]},
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_two_models(tmp_path_factory.mktemp("workspace"))


def open_in_float32(source: Source) -> LoadedModel:
    return open_model(Source(source.model, source.adapter, source.engine, "float32"))


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[httpx2.Client]:
    with served(create_app(Shelf(workspace, open_in_float32), GuardSettings())) as client:
        assert client.post("/api/model/load", json={"model_name": "tiny"}).status_code == 200
        yield client


@pytest.fixture(scope="module")
def client(server: httpx2.Client) -> Iterator[openai.OpenAI]:
    with connect(server) as found:
        yield found


def connect(server: httpx2.Client) -> openai.OpenAI:
    url = str(server.base_url).rstrip("/") + "/v1"
    return openai.OpenAI(base_url=url, api_key="any", max_retries=0)


@pytest.fixture(scope="module")
def tokenizer(workspace: Workspace) -> Tokenizer:
    return Tokenizer.load(workspace.base_models / "tiny")


@pytest.fixture(scope="module")
def reference(workspace: Workspace) -> Any:
    """The same model in transformers' own hands."""
    return AutoModelForCausalLM.from_pretrained(
        workspace.base_models / "tiny", dtype=torch.float32
    ).eval()


@torch.no_grad()
def log_probs_by_transformers(reference: Any, ids: list[int]) -> torch.Tensor:
    """[T, V]: row t is the distribution of the token after ids[t]."""
    found: torch.Tensor = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
    return found


def test_models_lists_the_loaded_one_first(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [TINY, "base/other"]
    assert client.models.retrieve("base/other").created > 1_500_000_000
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("base/none")
    assert refused.value.code == "model_not_found"


def test_chat_completion_whole_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    ask: Any = {"model": TINY, "messages": MESSAGES, "seed": 5, "max_completion_tokens": 40}
    whole = client.chat.completions.create(**ask)
    [choice] = whole.choices
    assert whole.object == "chat.completion" and whole.model == TINY
    assert choice.message.role == "assistant" and choice.message.content
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(**ask, stream=True, stream_options=options)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.id for chunk in chunks} == {last.id} and last.id.startswith("chatcmpl-")
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant" and not any(delta.role for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason
    assert (last.choices, last.usage) == ([], whole.usage)
    assert not any(chunk.choices[0].finish_reason for chunk in chunks[:-1])


def test_chat_answers_as_generate_does(client: openai.OpenAI, server: httpx2.Client) -> None:
    messages: Any = [{"role": "user", "content": "Who counts?"}]
    chat = client.chat.completions.create(
        model=TINY, messages=messages, temperature=0, max_tokens=20
    )
    ask = {"prompt": "Who counts?", "temperature": 0, "max_tokens": 20, "repetition_penalty": 1}
    native = server.post("/api/model/generate", json=ask).json()
    assert chat.choices[0].message.content == native["response"]
    assert chat.usage and chat.usage.completion_tokens == native["tokens_generated"]


def test_completion_whole_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    ask: Any = {"model": TINY, "prompt": [TEXT, "In winter"], "n": 2, "seed": 3, "logprobs": 2}
    whole = client.completions.create(**ask)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.choices[0].text != whole.choices[1].text  # two answers, not one twice
    for choice in whole.choices:
        pieces = [
            chunk.choices[0]
            for chunk in client.completions.create(**ask, stream=True)
            if chunk.choices[0].index == choice.index
        ]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert pieces[-1].finish_reason == choice.finish_reason
        assert choice.logprobs and choice.logprobs.tokens
        scores = [score for piece in pieces for score in piece.logprobs.token_logprobs]  # type: ignore[union-attr]
        # A prompt that is known already is not computed again, and sums are rounded otherwise.
        assert scores == pytest.approx(choice.logprobs.token_logprobs, abs=1e-5)


def test_prompt_may_be_text_or_ids_one_or_many(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    texts = {}
    prompts: Any = {"text": TEXT, "texts": [TEXT, TEXT], "ids": ids, "lists": [ids, ids, ids]}
    for name, prompt in prompts.items():
        reply = client.completions.create(model=TINY, prompt=prompt, temperature=0)
        texts[name] = [choice.text for choice in reply.choices]
        assert reply.usage and reply.usage.prompt_tokens == len(texts[name]) * len(ids)
    assert texts == {name: texts["text"] * len(found) for name, found in texts.items()}
    assert [len(found) for found in texts.values()] == [1, 2, 1, 3]


def test_usage_counts_the_tokens(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    reply = client.completions.create(model=TINY, prompt=TEXT, max_tokens=9, n=3, seed=1)
    usage = reply.usage
    assert usage and usage.prompt_tokens == len(tokenizer.encode(TEXT))
    assert [choice.finish_reason for choice in reply.choices] == ["length"] * 3
    assert usage.completion_tokens == 27 and usage.total_tokens == usage.prompt_tokens + 27


def test_stop_string_cuts_at_every_place_and_never_shows_in_the_stream(
    client: openai.OpenAI,
) -> None:
    ask: Any = {"model": TINY, "prompt": TEXT, "seed": 11, "max_tokens": 24}
    full = client.completions.create(**ask).choices[0].text
    assert len(full) > 20
    for length in (1, 2, 7):
        for start in range(len(full) - length):
            stop = full[start : start + length]
            reply = client.completions.create(**ask, stop=[stop, "never said"]).choices[0]
            assert (reply.text, reply.finish_reason) == (full[: full.index(stop)], "stop")
    seen = ""
    for chunk in client.completions.create(**ask, stop=full[9:16], stream=True):
        seen += chunk.choices[0].text
        assert full[: full.index(full[9:16])].startswith(seen)
    assert seen == full[: full.index(full[9:16])]


def test_text_held_back_for_a_stop_string_that_does_not_come_is_given_out(
    client: openai.OpenAI,
) -> None:
    ask: Any = {"model": TINY, "prompt": TEXT, "seed": 11, "max_tokens": 24}
    full = client.completions.create(**ask).choices[0].text
    reply = client.completions.create(**ask, stop=full[-4:] + "!?")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (full, "length")


def test_chat_logprobs_are_those_of_transformers(
    client: openai.OpenAI, tokenizer: Tokenizer, reference: Any
) -> None:
    messages: Any = [{"role": "user", "content": "Who counts?"}]
    reply = client.chat.completions.create(
        model=TINY, messages=messages, seed=2, max_tokens=12, logprobs=True, top_logprobs=5
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs and logprobs.content and reply.usage
    text = "<|im_start|>user\nWho counts?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode_template(text)
    assert len(ids) == reply.usage.prompt_tokens
    assert len(logprobs.content) == reply.usage.completion_tokens
    for item in logprobs.content:
        expected = log_probs_by_transformers(reference, ids)[-1]
        values, likeliest = expected.topk(5)
        assert [top.logprob for top in item.top_logprobs] == pytest.approx(
            values.tolist(), abs=1e-4
        )
        names = [tokenizer.decode([int(other)], skip_special=False) for other in likeliest]
        assert [top.token for top in item.top_logprobs] == names
        chosen = int((expected - item.logprob).abs().argmin())
        assert float(expected[chosen]) == pytest.approx(item.logprob, abs=1e-4)
        assert tokenizer.decode([chosen], skip_special=False) == item.token
        if item.bytes is not None:
            assert bytes(item.bytes).decode() == item.token
        ids.append(chosen)
    assert tokenizer.decode(ids[-len(logprobs.content) :]) == reply.choices[0].message.content


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("kind", ["text", "ids"])
def test_echo_scores_the_prompt_as_transformers_does(
    kind: str, max_tokens: int, client: openai.OpenAI, tokenizer: Tokenizer, reference: Any
) -> None:
    """What lm-eval's local-completions asks for log-likelihoods."""
    ids = tokenizer.encode(TEXT)
    prompts: Any = [TEXT, "In winter"] if kind == "text" else [ids, tokenizer.encode("In winter")]
    reply = client.completions.create(
        model=TINY, prompt=prompts, max_tokens=max_tokens, echo=True, logprobs=1, temperature=0
    )
    for choice, text in zip(reply.choices, (TEXT, "In winter"), strict=True):
        ids = tokenizer.encode(text)
        found = choice.logprobs
        assert found and found.tokens and found.token_logprobs and found.top_logprobs
        assert choice.text.startswith(text) and found.text_offset
        assert len(found.tokens) == len(ids) + max_tokens
        expected = log_probs_by_transformers(reference, ids)
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        for place in range(1, len(ids)):
            value = float(expected[place - 1, ids[place]])
            assert found.token_logprobs[place] == pytest.approx(value, abs=1e-4)
            best = float(expected[place - 1].max())
            assert max(found.top_logprobs[place].values()) == pytest.approx(best, abs=1e-4)
        if max_tokens:  # greedy: the likeliest, by exactly the same number
            assert found.token_logprobs[-1] == max(found.top_logprobs[-1].values())
        else:
            assert choice.text == text and choice.finish_reason == "length"
        for offset, token in zip(found.text_offset, found.tokens, strict=True):
            if "\ufffd" not in token and offset < len(text):
                assert choice.text[offset:].startswith(token)
    assert reply.usage and reply.usage.completion_tokens == 2 * max_tokens


def test_penalties_change_what_is_repeated(client: openai.OpenAI) -> None:
    ask: Any = {"model": TINY, "prompt": TEXT, "temperature": 0, "max_tokens": 60, "logprobs": 0}

    def distinct(**penalty: float) -> float:
        logprobs = client.completions.create(**ask, **penalty).choices[0].logprobs
        assert logprobs and logprobs.tokens
        return len(set(logprobs.tokens)) / len(logprobs.tokens)

    plain = distinct()
    assert plain < 1
    assert distinct(frequency_penalty=2) > plain
    assert distinct(presence_penalty=2) > plain


def test_64_requests_at_once_each_get_their_own_answer(server: httpx2.Client) -> None:
    asks: list[Any] = [
        {"model": TINY, "prompt": f"Sack {number} of the mill", "seed": number, "max_tokens": 8}
        for number in range(64)
    ]
    with connect(server) as client:
        alone = [client.completions.create(**ask) for ask in asks]
        assert len({reply.choices[0].text for reply in alone}) > 60  # a mix-up would show
        with ThreadPoolExecutor(64) as pool:
            asked = [pool.submit(client.completions.create, **ask) for ask in asks]
    for future, expected in zip(asked, alone, strict=True):
        if isinstance(error := future.exception(), openai.APIStatusError):
            assert error.status_code == 503 and int(error.response.headers["retry-after"]) > 0
        else:
            assert future.result().choices == expected.choices


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, None),
        ({"top_p": 2}, "top_p"),
        ({"n": 9}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], [100_000]]}, "prompt"),
        ({"prompt": "mill " * 2000}, None),
        ({"suffix": "end"}, "suffix"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_wrong_values_are_refused_by_name(
    change: dict[str, Any], param: str | None, server: httpx2.Client
) -> None:
    reply = post(server, "/v1/completions", {"model": TINY, "prompt": TEXT} | change)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.content"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_wrong_chat_values_are_refused_by_name(
    change: dict[str, Any], param: str, server: httpx2.Client
) -> None:
    reply = post(server, "/v1/chat/completions", {"model": TINY, "messages": MESSAGES} | change)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


# What asks for nothing, of each parameter that OpenAI's client knows: its neutral values, and one
# that would change the answer where there is such a value that we do not take.
NEUTRAL: dict[str, tuple[list[Any], Any]] = {
    "audio": ([None], {"voice": "a", "format": "wav"}),
    "frequency_penalty": ([None, 0, 0.0], None),
    "function_call": ([None, "none", "auto"], {"name": "count"}),
    "functions": ([None, []], [{"name": "count"}]),
    "logit_bias": ([None, {}], {"5": 1}),
    "logprobs": ([None, False], None),
    "max_completion_tokens": ([None], None),
    "max_tokens": ([None], None),
    "metadata": ([None, {}, {"job": "a"}], None),
    "modalities": ([None, ["text"]], ["text", "audio"]),
    "moderation": ([None], {"model": "a"}),
    "n": ([None, 1], None),
    "parallel_tool_calls": ([None, True, False], None),
    "prediction": ([None, {"type": "content", "content": "The"}], None),
    "presence_penalty": ([None, 0], None),
    "prompt_cache_key": ([None, "a"], None),
    "prompt_cache_options": ([None, {}], None),
    "prompt_cache_retention": ([None, "24h"], None),
    "reasoning_effort": ([None], "high"),
    "response_format": ([None, {"type": "text"}], {"type": "json_object"}),
    "safety_identifier": ([None, "a"], None),
    "seed": ([None], None),
    "service_tier": ([None, "auto", "default"], None),
    "stop": ([None, []], None),
    "store": ([None, False, True], None),
    "stream": ([None, False], None),
    "stream_options": ([None], None),
    "temperature": ([None, 1], None),
    "tool_choice": ([None, "none", "auto"], "required"),
    "tools": ([None, []], [{"type": "function", "function": {"name": "count"}}]),
    "top_logprobs": ([None], None),
    "top_p": ([None, 1], None),
    "user": ([None, "a"], None),
    "verbosity": ([None, "medium"], "low"),
    "web_search_options": ([None], {}),
}
NEUTRAL_OF_COMPLETIONS: dict[str, tuple[list[Any], Any]] = {
    "best_of": ([None, 1], 2),
    "echo": ([None, False], None),
    "logprobs": ([None], None),
    "suffix": ([None, ""], "end"),
}


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_what_asks_for_nothing_is_answered_as_if_it_were_not_there(
    route: str, server: httpx2.Client
) -> None:
    is_chat = route.startswith("chat")
    kind = chat_parameters if is_chat else text_parameters
    known = set(kind.CompletionCreateParamsBase.__annotations__) - {"model", "messages", "prompt"}
    values = NEUTRAL if is_chat else NEUTRAL | NEUTRAL_OF_COMPLETIONS
    assert known <= values.keys()
    asked = {"messages": MESSAGES} if is_chat else {"prompt": TEXT}
    body = {"model": TINY, "seed": 5, "max_tokens": 2} | asked

    def answer(**extra: Any) -> Any:
        reply = post(server, f"/v1/{route}", body | extra)
        assert reply.status_code == 200, (extra, reply.text)
        return reply.json()["choices"]

    expected = answer()
    for name in sorted(known | {"stream", "repetition_penalty"}):
        neutral, asking = values.get(name, ([None, 1.0], None))
        for value in neutral:
            found = answer(**{name: value})
            if name not in ("seed", "max_tokens"):
                assert found == expected, (name, value)
        if asking is not None:
            reply = post(server, f"/v1/{route}", body | {name: asking})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)
            assert "not supported" in reply.json()["error"]["message"]


def test_an_answer_can_be_sent_back_as_the_client_has_it(client: openai.OpenAI) -> None:
    messages = list(MESSAGES)
    for _ in range(3):
        reply = client.chat.completions.create(model=TINY, messages=messages, max_tokens=3)
        messages.append(reply.choices[0].message.model_dump())
        messages.append({"role": "user", "content": "And then?"})
    nothing_said = [{"role": "assistant", "content": None}, {"role": "user", "content": "again"}]
    assert client.chat.completions.create(
        model=TINY, messages=[*MESSAGES, *nothing_said], max_tokens=2
    ).choices


@pytest.mark.parametrize(
    "extra",
    [
        {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "b"}}]},
        {"function_call": {"name": "b", "arguments": "{}"}},
        {"refusal": "I will not."},
        {"audio": {"id": "a"}},
    ],
)
def test_a_message_that_says_more_than_its_text_is_refused(
    extra: dict[str, Any], server: httpx2.Client
) -> None:
    said = {"role": "assistant", "content": "x"} | extra
    body = {"model": TINY, "messages": [*MESSAGES, said, MESSAGES[1]]}
    reply = post(server, "/v1/chat/completions", body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == f"messages.{next(iter(extra))}"


def post(server: httpx2.Client, path: str, body: object) -> httpx2.Response:
    """With NaN as Python writes it, which a client's own encoder would refuse."""
    headers = {"content-type": "application/json"}
    return server.post(path, content=json.dumps(body), headers=headers)


def test_what_http_refuses_has_openai_s_shape_too(server: httpx2.Client) -> None:
    headers = {"content-type": "application/json"}
    replies = [
        server.post("/v1/completions", content=b"{", headers=headers),
        server.post("/v1/none", json={}),
        server.get("/v1/completions"),
    ]
    assert [reply.status_code for reply in replies] == [400, 404, 405]
    assert replies[2].headers["allow"] == "POST"
    for reply in replies:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert "error_code" in server.get("/api/none").json()


def test_unknown_model_is_not_found_and_the_loaded_one_stays(
    client: openai.OpenAI, server: httpx2.Client
) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert server.get("/api/model/status").json()["loaded"] is True


def test_named_model_is_loaded_on_demand(workspace: Workspace) -> None:
    with (
        served(create_app(Shelf(workspace, open_in_float32), GuardSettings())) as server,
        connect(server) as client,
    ):
        texts = {}
        for name in ("other", TINY, "tiny"):
            reply = client.completions.create(model=name, prompt=TEXT, temperature=0)
            texts[name] = reply.choices[0].text
            loaded = server.get("/api/model/status").json()["model_name"]
            assert loaded == ("other" if name == "other" else TINY)
        assert texts["tiny"] == texts[TINY] != texts["other"]
        assert next(iter(client.models.list())).id == TINY


class Slow:
    """Lets the real engine make one answer at a time, a token for each permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.num_made = 0
        self.num_running = 0
        self.error: Exception | None = None

    def open(self, source: Source) -> LoadedModel:
        model = open_in_float32(source)
        generate = model.engine.generate

        def slowly(*args: Any) -> Iterator[int]:
            self.num_running += 1
            try:
                for token_id in generate(*args):
                    assert self.permits.acquire(timeout=PATIENCE_SECONDS)
                    if self.error is not None:
                        raise self.error
                    self.num_made += 1
                    yield token_id
            finally:
                self.num_running -= 1

        model.engine.generate = slowly  # type: ignore[method-assign]
        model.engine.max_concurrent = 1
        return model


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def slow_server(workspace: Workspace, slow: Slow) -> Iterator[httpx2.Client]:
    with served(create_app(Shelf(workspace, slow.open), GuardSettings())) as server:
        assert server.post("/api/model/load", json={"model_name": "tiny"}).status_code == 200
        yield server
        slow.permits.release(100_000)


ASK = {"prompt": "Who counts?", "seed": 1, "max_tokens": 100}


def test_cancel_ends_what_runs_and_what_waits(slow_server: httpx2.Client, slow: Slow) -> None:
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(
            slow_server.post, "/api/model/generate", json=ASK | {"request_id": "first"}
        )
        eventually(lambda: slow.num_running)
        waiting = pool.submit(
            slow_server.post, "/api/model/generate", json=ASK | {"request_id": "second"}
        )
        eventually(lambda: cancel(slow_server, "second").status_code == 200)
        ended = waiting.result().json()  # without a permit: it did not wait for its turn
        assert (ended["finish_reason"], ended["tokens_generated"]) == ("cancelled", 0)
        assert ended["request_id"] == "second" and not running.done()
        assert cancel(slow_server, None).json()["cancelled"] == ["first"]
        slow.permits.release()
        ended = running.result().json()
        assert (ended["finish_reason"], ended["request_id"]) == ("cancelled", "first")
        assert ended["tokens_generated"] == slow.num_made == 1
    refused = cancel(slow_server, "first")
    assert (refused.status_code, refused.json()["error_code"]) == (404, "NOT_FOUND")
    slow.permits.release(1000)
    assert slow_server.post("/api/model/generate", json=ASK).json()["tokens_generated"] > 1


def cancel(server: httpx2.Client, request_id: str | None) -> httpx2.Response:
    return server.post("/api/model/cancel", json={"request_id": request_id} if request_id else {})


def test_cancelled_stream_ends_with_its_reason(slow_server: httpx2.Client, slow: Slow) -> None:
    body = ASK | {"streaming": True}
    with slow_server.stream("POST", "/api/model/generate", json=body) as reply:
        request_id = reply.headers["x-request-id"]
        assert cancel(slow_server, request_id).status_code == 200
        slow.permits.release()
        last = [json.loads(line[6:]) for line in reply.iter_lines() if line][-1]
    assert (last["type"], last["finish_reason"]) == ("done", "cancelled")
    assert last["request_id"] == request_id


def test_completion_is_cancelled_by_its_id(slow_server: httpx2.Client, slow: Slow) -> None:
    with connect(slow_server) as client:
        slow.permits.release(3)
        ask: Any = {"model": TINY, "messages": MESSAGES, "seed": 5, "n": 2}
        chunks = client.chat.completions.create(**ask, stream=True)
        first = next(iter(chunks))
        assert cancel(slow_server, first.id).json()["cancelled"] == [first.id]
        slow.permits.release()
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert [reason for reason in reasons if reason] == ["cancelled", "cancelled"]
    assert slow.num_made <= 4


def test_request_ids_of_its_own_must_be_new(slow_server: httpx2.Client, slow: Slow) -> None:
    body = ASK | {"request_id": "mine"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(slow_server.post, "/api/model/generate", json=body)
        eventually(lambda: slow.num_running)
        assert slow_server.post("/api/model/generate", json=body).status_code == 409
        slow.permits.release(1000)
        assert first.result().status_code == 200
    assert slow_server.post("/api/model/generate", json=body).status_code == 200


def test_client_that_hangs_up_ends_its_completion(slow_server: httpx2.Client, slow: Slow) -> None:
    with connect(slow_server) as client:
        ask: Any = {"model": TINY, "prompt": TEXT, "seed": 1, "max_tokens": 300}
        slow.permits.release(1)
        with client.completions.create(**ask, stream=True) as chunks:
            next(iter(chunks))
        let_end(slow)
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(**ask, timeout=0.3)
        let_end(slow)
        slow.permits.release(1000)
        assert client.completions.create(**ask | {"max_tokens": 2}).choices[0].text


def let_end(slow: Slow) -> None:
    """One permit at a time: the answer must end long before it is complete."""
    before = slow.num_made
    while slow.num_running:
        made = slow.num_made
        slow.permits.release()
        eventually(lambda made=made: slow.num_made > made or not slow.num_running)  # type: ignore[misc]
        time.sleep(0.02)  # the server must get to see that its client is gone
    assert slow.num_made - before < 250


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory at /home/someone"), "INTERNAL_ERROR"),
        (RuntimeError("secret at 0xdeadbeef"), "INTERNAL_ERROR"),
        (OutOfMemory("The machine ran out of memory."), "OUT_OF_MEMORY"),
    ],
)
def test_engine_that_fails_while_it_answers_is_an_error_for_every_client(
    error: Exception, code: str, slow_server: httpx2.Client, slow: Slow
) -> None:
    slow.error = error
    slow.permits.release(1000)
    whole = slow_server.post("/api/model/generate", json=ASK)
    assert (whole.status_code, whole.json()["error_code"]) == (500, code)
    streamed = slow_server.post("/api/model/generate", json=ASK | {"streaming": True})
    item = json.loads(streamed.text.strip().removeprefix("data: "))
    assert (item["type"], item["error_code"]) == ("error", code) and item["request_id"]
    assert "secret" not in whole.text + streamed.text
    with connect(slow_server) as client:
        ask: Any = {"model": TINY, "messages": MESSAGES, "seed": 5}
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(**ask)
        assert refused.value.code == code.lower()
        with pytest.raises(openai.APIError, match="."):
            list(client.chat.completions.create(**ask, stream=True))
        slow.error = None
        assert client.chat.completions.create(**ask, max_tokens=3).choices[0].finish_reason


def test_lm_eval_reads_likelihoods_out_of_our_replies(
    reference: Any, server: httpx2.Client, tokenizer: Tokenizer
) -> None:
    """The request and the reading of lm-eval 0.4.13's `local-completions`."""
    context = tokenizer.encode("The mill stands where")
    with torch.no_grad():
        likeliest = reference.generate(
            torch.tensor([context]), max_new_tokens=3, do_sample=False, eos_token_id=None
        )[0].tolist()
    prompts = [likeliest, [*context, *tokenizer.encode(" two rivers meet in winter")]]
    request = {
        "model": TINY, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1,
        "seed": 1234, "echo": True,
    }  # fmt: skip
    choices = server.post("/v1/completions", json=request).json()["choices"]
    found = []
    for choice in sorted(choices, key=lambda choice: choice["index"]):
        own = choice["logprobs"]["token_logprobs"][len(context) : -1]
        top = choice["logprobs"]["top_logprobs"][len(context) : -1]
        found.append((sum(own), all(a == max(b.values()) for a, b in zip(own, top, strict=True))))
    wanted = []
    for ids in prompts:
        scores = log_probs_by_transformers(reference, ids)
        wanted.append(sum(float(scores[i - 1, ids[i]]) for i in range(len(context), len(ids))))
    assert [score for score, _ in found] == pytest.approx(wanted, abs=1e-4)
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_a_run_is_named_by_its_folder_and_means_its_best_checkpoint(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(), max_seq_length=64)
    with lock:
        assert Session().train(run).phase == "completed"
    name = f"cpt/{run.folder.name}"
    with (
        served(create_app(Shelf(workspace, open_in_float32), GuardSettings())) as server,
        connect(server) as client,
    ):
        assert [model.id for model in client.models.list()] == [TINY, name]
        texts = {
            model: client.completions.create(model=model, prompt=TEXT, temperature=0)
            .choices[0]
            .text
            for model in (TINY, name)
        }
        assert texts[name] != texts[TINY]
        assert [model.id for model in client.models.list()] == [name, TINY]
        server.post(
            "/api/model/load", json={"model_name": "tiny", "adapter_path": f"models/{name}"}
        )
        ask = {"prompt": TEXT, "temperature": 0, "repetition_penalty": 1, "max_tokens": 16}
        native = server.post("/api/model/generate", json=ask | {"is_base_model": True}).json()
        assert native["response"] == texts[name]


def test_web_server_passes_cancelling_on(
    workspace: Workspace, slow_server: httpx2.Client, slow: Slow
) -> None:
    web_app = create_web_app(workspace, GuardSettings(), str(slow_server.base_url))
    with served(web_app) as web:
        body = ASK | {"streaming": True}
        with web.stream("POST", "/api/model/generate", json=body) as reply:
            request_id = reply.headers["x-request-id"]
            assert cancel(web, request_id).json()["cancelled"] == [request_id]
            slow.permits.release()
            last = [json.loads(line[6:]) for line in reply.iter_lines() if line][-1]
        assert (last["finish_reason"], last["request_id"]) == ("cancelled", request_id)
