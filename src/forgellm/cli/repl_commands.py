"""The commands of the chat: lines that begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgellm import __version__
from forgellm.cli.terminal_text import clean
from forgellm.errors import ForgeError, InvalidRequest, TrainingFailed

if TYPE_CHECKING:
    from forgellm.cli.model_choice import ModelChoice
    from forgellm.generation.conversation import Conversation
    from forgellm.schema.generation import Message

_MAX_FILE_BYTES = 16_000_000
_HELP = """\
/help                 show this list
/stats                show figures of this session
/system [TEXT]        show the system prompt, or set it
/clear                forget the conversation; the system prompt stays
/save FILE            write the conversation to a JSON file
/load FILE            go on with a conversation that was saved
/model NAME           go on with another model, without an adapter
/adapter PATH, none   go on with an adapter on the model, or without one
/q, /exit             leave (also Ctrl-D)
Alt-Enter, or a backslash at the end of a line, begins a new line. Ctrl-C stops an answer.
A line that begins with a space is always text, also where a slash follows."""


def say(text: str) -> None:
    """A line beside the answers, without orders to the terminal."""
    print(clean(text), file=sys.stderr, flush=True)


@dataclass
class Chat:
    """A conversation, and the model that it is with."""

    conversation: Conversation
    choice: ModelChoice

    def do(self, text: str) -> bool:
        """Do what a line with a slash says. False means leave."""
        name, *rest = text.split(maxsplit=1)
        if name in ("/q", "/exit"):
            return False
        command = _COMMANDS.get(name)
        if command is None:
            say(f"{name} is not a command; /help lists them")
            return True
        try:
            command(self, rest[0].strip() if rest else "")
        except ForgeError as error:
            say(" ".join(filter(None, [f"{error.message}.", error.suggestion])))
        return True

    def _help(self, argument: str) -> None:
        say(_HELP)

    def _stats(self, argument: str) -> None:
        conversation = self.conversation
        tokens, seconds = conversation.generated_tokens, conversation.generation_seconds
        speed = f", {tokens / seconds:.1f} tok/s" if seconds else ""
        say(f"Answers: {conversation.num_answers}")
        say(f"Generated: {tokens} tokens in {seconds:.1f} s{speed}")
        context_length = conversation.engine.info.context_length
        say(f"Conversation: {conversation.context_tokens} of {context_length} tokens")

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.system = argument
        system = self.conversation.system
        say(f"System prompt: {system}" if system else "No system prompt")

    def _clear(self, argument: str) -> None:
        self.conversation.clear()
        say("The conversation is forgotten")

    def _save(self, argument: str) -> None:
        from forgellm.atomic import write_json
        from forgellm.paths import iso_utc

        path = _path("/save", argument)
        messages = _messages(self.conversation)
        metadata = {
            "model_name": self.choice.model_name,
            "adapter_path": self.choice.adapter_path,
            "saved_at": iso_utc(),
            "sampling": self.conversation.sampling.model_dump(),
            "forgellm_version": __version__,
        }
        payload = {"metadata": metadata, "messages": [m.model_dump() for m in messages]}
        if not path.parent.is_dir():
            raise InvalidRequest(f"There is no folder {path.parent}")
        try:
            write_json(path, payload)
        except TrainingFailed as error:  # its advice is for runs
            raise InvalidRequest(error.message) from None
        say(f"Saved {len(messages)} messages to {path}")

    def _load(self, argument: str) -> None:
        path = _path("/load", argument)
        messages = _read_messages(path)
        self.conversation.clear()
        has_system = bool(messages) and messages[0].role == "system"
        self.conversation.system = messages.pop(0).content if has_system else None
        self.conversation.turns = messages
        say(f"Loaded {len(messages) + has_system} messages from {path}")

    def _model(self, argument: str) -> None:
        if argument:
            self._switch(replace(self.choice, model_name=argument, adapter_path=None))
        say(f"Model: {self.choice.model_name}")

    def _adapter(self, argument: str) -> None:
        if argument:
            path = None if argument == "none" else argument
            self._switch(replace(self.choice, adapter_path=path))
        say(f"Adapter: {self.choice.adapter_path or 'none'}")

    def _switch(self, choice: ModelChoice) -> None:
        """Open another model; where that fails, the one before again. Raises ForgeError."""
        choice.find()  # what does not exist changes nothing
        conversation = self.conversation
        del conversation.engine  # two models at once may not fit
        try:
            conversation.engine, conversation.tokenizer = choice.open()
        except (ForgeError, KeyboardInterrupt) as problem:
            conversation.engine, conversation.tokenizer = self.choice.open()
            if isinstance(problem, ForgeError):
                raise
            return
        self.choice = choice
        conversation.context_tokens = 0


_COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/help": Chat._help,
    "/stats": Chat._stats,
    "/system": Chat._system,
    "/clear": Chat._clear,
    "/save": Chat._save,
    "/load": Chat._load,
    "/model": Chat._model,
    "/adapter": Chat._adapter,
}


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise InvalidRequest(f"{command} needs the name of a file")
    try:
        return Path(argument).expanduser()
    except RuntimeError:  # nobody's home is known
        return Path(argument)


def _messages(conversation: Conversation) -> list[Message]:
    from forgellm.schema.generation import Message

    system = conversation.system
    first = [Message(role="system", content=system)] if system else []
    return [*first, *conversation.turns]


def _read_messages(path: Path) -> list[Message]:
    """The messages of a saved conversation. Raises InvalidRequest."""
    from pydantic import TypeAdapter, ValidationError

    from forgellm.schema.generation import Message

    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise InvalidRequest(f"{path} is larger than {_MAX_FILE_BYTES // 10**6} MB")
        saved: Any = json.loads(text)
        return TypeAdapter(list[Message]).validate_python(saved["messages"])
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, RecursionError, ValidationError):
        raise InvalidRequest(f"{path} is not a saved conversation") from None
