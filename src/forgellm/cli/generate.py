"""`forgellm cli generate`: one answer, or a chat, in this terminal."""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import TYPE_CHECKING, Any

from forgellm.cli.model_choice import ModelChoice, add_changed_base_flag, add_model_flags, checked
from forgellm.errors import InvalidRequest
from forgellm.paths import find_workspace

if TYPE_CHECKING:
    from forgellm.generation.conversation import Conversation


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="answer a prompt, or chat",
        description="Answer a prompt. Without --prompt, chat; /help there lists the commands.",
    )
    add_model_flags(parser)
    add_changed_base_flag(parser)
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help="answer this and leave; - reads it from standard input")
    add("--system", metavar="TEXT", help="the system prompt")
    add("--base", action="store_true", help="plain text, also where there is a chat template")
    add("--json", action="store_true", help="with --prompt: the answer as one JSON object")
    add("--engine", choices=("auto", "torch", "mlx"), default="auto")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    add("--kv-bits", type=int, choices=(4, 8), help="quantise the key-value cache (engine mlx)")
    _add_sampling_flags(parser)
    parser.set_defaults(run=run)


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    shown = " (default: %(default)s)"
    add("--max-tokens", type=int, default=200, metavar="N", help="length of an answer" + shown)
    add("--temperature", type=float, default=0.7, metavar="X", help="0 is greedy" + shown)
    add("--top-p", type=float, default=0.9, metavar="X", help="nucleus sampling" + shown)
    add(
        "--repetition-penalty",
        type=float,
        default=1.1,
        metavar="X",
        help="above 1 avoids words that were said; 1 is none" + shown,
    )
    add("--seed", type=int, metavar="N", help="the same answers each time")


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    if args.json and args.prompt is None:
        raise InvalidRequest(
            "--json needs --prompt", suggestion="Use --prompt - to read from a pipe."
        )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a ?
    prompt = None if args.prompt is None else _given_text("--prompt", args.prompt)
    choice = ModelChoice.of_flags(
        find_workspace(args.workspace),
        args.model,
        args.adapter_path,
        args.engine,
        args.dtype,
        args.kv_bits,
        allow_changed_base=args.allow_changed_base,
    )
    conversation = _open_conversation(args, choice)
    if prompt is None:
        from forgellm.cli.repl import run_repl

        return run_repl(conversation, choice)
    return _answer_once(conversation, prompt, as_json=args.json)


def _answer_once(conversation: Conversation, prompt: str, *, as_json: bool) -> int:
    from forgellm.cli.answers import print_answer
    from forgellm.generation.session import Done

    items = conversation.ask(prompt)
    if as_json:
        import json
        from dataclasses import asdict

        done = next(item for item in items if isinstance(item, Done))
        print(json.dumps({"success": True, **asdict(done)}))
        return 0
    done = print_answer(items)
    cut = ", cut at --max-tokens" if done.finish_reason == "length" else ""
    figures = f"{done.tokens_generated} tokens, {done.tokens_per_second:.1f} tok/s"
    print(figures + cut, file=sys.stderr)
    return 0


def _open_conversation(args: argparse.Namespace, choice: ModelChoice) -> Conversation:
    from forgellm.generation.conversation import Conversation
    from forgellm.schema.generation import Sampling

    sampling = checked(
        Sampling,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
    system = None if args.system is None else _given_text("--system", args.system)
    engine, tokenizer = choice.open()
    return Conversation(engine, tokenizer, sampling, True if args.base else None, system)


def _given_text(flag: str, text: str) -> str:
    """The text of a flag. Raises InvalidRequest if it is not UTF-8."""
    try:
        if flag == "--prompt" and text == "-":
            if sys.stdin is None:
                raise InvalidRequest("Standard input is closed, so --prompt - has nothing to read")
            return sys.stdin.buffer.read().decode().removesuffix("\n")
        return os.fsencode(text).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"The text of {flag} is not UTF-8") from None
