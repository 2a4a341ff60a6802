"""The chat of `forgellm cli generate`: answers on standard output, all else on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from forgellm.cli.answers import print_answer
from forgellm.cli.repl_commands import Chat, say
from forgellm.errors import ForgeError

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from forgellm.cli.model_choice import ModelChoice
    from forgellm.generation.conversation import Conversation


def run_repl(conversation: Conversation, choice: ModelChoice) -> int:
    """Chat until /q or the end of the input; returns the exit code."""
    if sys.stdin is None:  # it was closed before we began
        return 0
    if sys.stdin.isatty():
        say("/help lists the commands")
        texts = _typed_texts()
    else:
        texts = _piped_texts()
    chat = Chat(conversation, choice)
    for text in texts:
        # What a terminal sends that is not UTF-8 arrives as lone surrogates.
        text = text.encode(errors="replace").decode()
        if not text.startswith("/"):
            if text.strip():
                _ask(conversation, text)
        elif not chat.do(text):
            break
    return 0


def _ask(conversation: Conversation, text: str) -> None:
    try:
        done = print_answer(conversation.ask(text))
    except KeyboardInterrupt:
        say("(stopped)")
    except ForgeError as error:
        say(f"{error.message}. /clear forgets the conversation.")
    else:
        if done.finish_reason == "length":
            say(f"(cut after {done.tokens_generated} tokens)")


def _piped_texts() -> Iterator[str]:
    """Lines of standard input; a backslash at the end of one joins the next."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    begun: list[str] = []
    for line in sys.stdin:
        begun.append(line.removesuffix("\n"))
        if begun[-1].endswith("\\"):
            begun[-1] = begun[-1][:-1]
            continue
        yield "\n".join(begun)
        begun.clear()
    if begun:
        yield "\n".join(begun)


def _typed_texts() -> Iterator[str]:
    """What the user types; Ctrl-C clears the line, Ctrl-D on an empty one ends."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        key_bindings=_key_bindings(),
        history=_history(),
        output=create_output(always_prefer_tty=True),  # where the answers go to a file
    )
    while True:
        try:
            text = session.prompt()
        except KeyboardInterrupt:
            continue
        except (EOFError, OSError):  # OSError: the terminal is gone
            return
        yield text


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()
    in_text = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=in_text)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=in_text)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> History:
    """Kept in the user's state folder, for their eyes only; in memory where there is none."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        folder = Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()
        file = folder / "forgellm" / "history"
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
        file.chmod(0o600)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home is known
        return InMemoryHistory()

    class _FileHistory(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a full disk costs the line, not the chat
                super().store_string(string)

    return _FileHistory(file)
