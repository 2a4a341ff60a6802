"""What writes questions and answers them: a model in this process, or one behind an address."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from forgellm.endpoint import plain_address
from forgellm.errors import InvalidRequest, Unavailable
from forgellm.questions.prompts import Prompt
from forgellm.schema.generation import Sampling

if TYPE_CHECKING:
    import httpx2

    from forgellm.data.tokenizer import Tokenizer
    from forgellm.engines.base import GenerateEngine

KEY_VARIABLE = "FORGELLM_ENDPOINT_KEY"
RETRY_SECONDS = (1.0, 5.0, 20.0)
_LONGEST_WAIT_SECONDS = 60.0
_TIMEOUT_SECONDS = 600.0
_MAX_REPLY_BYTES = 4_000_000
_STOP = ("\n\n",)


class Asker(Protocol):
    """A model that follows examples.

    Attributes:
        name: of the model, for the records; an endpoint's address is no part of it.
    """

    name: str

    def ask(self, prompt: Prompt, sampling: Sampling) -> str:
        """What the model says, which may be anything. Raises ForgeError."""


class EngineAsker:
    """A model loaded in this process. Examples reach it as plain text, whatever its chat template:
    small models follow them better so."""

    def __init__(self, name: str, engine: GenerateEngine, tokenizer: Tokenizer) -> None:
        self.name = name
        self._engine, self._tokenizer = engine, tokenizer

    def ask(self, prompt: Prompt, sampling: Sampling) -> str:
        from forgellm.generation.prompt import build_prompt, require_room
        from forgellm.generation.session import Done, answer

        ids = build_prompt(self._tokenizer, prompt.as_text(), [], is_base_model=True)
        require_room(ids, self._engine.info.context_length)
        for item in answer(self._engine, self._tokenizer, ids, sampling, stop=_STOP):
            if isinstance(item, Done):
                return f"{prompt.begin} {item.response}"
        raise AssertionError("an answer ends with its figures")


class EndpointAsker:
    """A model behind an OpenAI-compatible address, such as `http://127.0.0.1:5001/v1`; a context
    manager that closes its connections.

    Attributes:
        style: `chat` sends the examples as turns of a conversation, `text` as text to continue.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        style: Literal["chat", "text"] = "chat",
        key: str | None = None,
    ) -> None:
        """Raises InvalidRequest for anything but an address of http or https."""
        self.name, self._style = name, style
        self._url = plain_address(url, "The endpoint")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def __enter__(self) -> EndpointAsker:
        return self

    def __exit__(self, *_: object) -> None:
        if "_client" in self.__dict__:
            self._client.close()

    @cached_property
    def _client(self) -> httpx2.Client:
        import httpx2

        return httpx2.Client(
            timeout=httpx2.Timeout(_TIMEOUT_SECONDS, connect=10.0),
            follow_redirects=False,  # it could carry the key elsewhere
            # A proxy for the internet has no business within the machine.
            trust_env=urlsplit(self._url).hostname not in ("localhost", "127.0.0.1", "::1"),
        )

    def ask(self, prompt: Prompt, sampling: Sampling) -> str:
        body: dict[str, Any] = {
            "model": self.name,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
        }
        if self._style == "text":
            body |= {"prompt": prompt.as_text(), "stop": list(_STOP)}
            choice = self._choice("completions", body)
            return f"{prompt.begin} {_text(choice.get('text'))}"
        body["messages"] = [turn.model_dump() for turn in prompt.as_turns()]
        message = self._choice("chat/completions", body).get("message")
        return _text(message.get("content") if isinstance(message, dict) else None)

    def _choice(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the reply. Raises Unavailable, InvalidRequest."""
        for wait in (*RETRY_SECONDS, None):
            status, reply, wanted = self._post(f"{self._url}/{route}", body)
            if status == 200:
                try:
                    choice = reply["choices"][0]
                except (LookupError, TypeError):
                    choice = None
                if not isinstance(choice, dict):
                    raise Unavailable(
                        "The endpoint's reply is not that of an OpenAI-compatible one"
                    )
                return choice
            if wait is None or (status and status != 429 and status < 500):
                break
            time.sleep(min(max(wait, wanted), _LONGEST_WAIT_SECONDS))
        if status and status != 429 and status < 500:
            raise InvalidRequest(
                f"The endpoint refused the request with status {status}",
                suggestion=f"Check the model's name, and the key in {KEY_VARIABLE}.",
                details={"status": status},
            )
        raise Unavailable(
            f"The endpoint answered with status {status}"
            if status
            else "The endpoint does not answer",
            suggestion="Run the same again: it continues where it ended.",
            details={"status": status},
        )

    def _post(self, url: str, body: dict[str, Any]) -> tuple[int, Any, float]:
        """Status (0 without a reply), the reply's JSON, and the seconds it asks to wait."""
        import httpx2
        import orjson

        try:
            with self._client.stream("POST", url, json=body, headers=self._headers) as reply:
                text = _bounded(reply)
        except (httpx2.HTTPError, httpx2.InvalidURL):
            return 0, None, 0.0
        after = reply.headers.get("retry-after", "")
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            found = None
        return reply.status_code, found, float(after) if after.isdecimal() else 0.0


def _bounded(reply: httpx2.Response) -> bytes:
    """The body, up to a size that no answer has."""
    found = bytearray()
    for piece in reply.iter_bytes():
        found += piece
        if len(found) > _MAX_REPLY_BYTES:
            break
    return bytes(found)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
