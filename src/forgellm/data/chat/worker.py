"""A process that encodes rows for another: `python -m forgellm.data.chat.worker`.

It gets JSON on standard input, each piece after its length in four bytes: first the tokenizer and
the format, then lists of rows. For each list it answers with two lengths, a JSON list with what is
known of each row or why it is left out, and the rows' ids and trained marks.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import asdict
from typing import IO, Any

import orjson

from forgellm.data.chat.encoding import ChatFormat, EncodedRow, RowEncoder, encode_rows
from forgellm.data.chat.pairs import row_encoder
from forgellm.data.tokenizer import Tokenizer


def start_message(tokenizer: Tokenizer, form: ChatFormat) -> bytes:
    return _framed(orjson.dumps([tokenizer.to_dict(), asdict(form)]))


def rows_message(rows: list[Any]) -> bytes:
    """Raises TypeError where a row cannot be sent as it is."""
    return _framed(orjson.dumps(rows, option=orjson.OPT_PASSTHROUGH_DATETIME))


def read_reply(stream: IO[bytes]) -> list[EncodedRow | str]:
    """Raises EOFError where the worker is gone."""
    num_facts, num_data = struct.unpack("<II", _read(stream, 8))
    facts, data = orjson.loads(_read(stream, num_facts)), memoryview(_read(stream, num_data))
    rows: list[EncodedRow | str] = []
    for fact in facts:
        if isinstance(fact, str):
            rows.append(fact)
            continue
        num_tokens, name, *rest = fact
        ids, trained, data = data[: num_tokens * 4], data[num_tokens * 4 : num_tokens * 5], data[num_tokens * 5 :]  # fmt: skip
        rows.append(EncodedRow(bytes(ids), bytes(trained), bytes.fromhex(name), *rest))
    return rows


def main() -> None:
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    tokenizer, form = orjson.loads(_read_framed(requests))
    encoder = row_encoder(Tokenizer.from_dict(tokenizer), ChatFormat(**form))
    while True:
        try:
            rows = orjson.loads(_read_framed(requests))
        except EOFError:
            return
        replies.write(_reply(encoder, rows))
        replies.flush()


def _reply(encoder: RowEncoder, rows: list[Any]) -> bytes:
    facts: list[Any] = []
    data = bytearray()
    for found in encode_rows(encoder, rows):
        if isinstance(found, str):
            facts.append(found)
            continue
        ids, trained, name, *rest = found
        facts.append([len(trained), name.hex(), *rest])
        data += ids + trained
    text = orjson.dumps(facts)
    return struct.pack("<II", len(text), len(data)) + text + data


def _framed(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _read_framed(stream: IO[bytes]) -> bytes:
    (length,) = struct.unpack("<I", _read(stream, 4))
    return _read(stream, length)


def _read(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
