"""Bodies that a JSON schema cannot express, and wrong values for every field that one can."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import orjson

from security.attack import SECRET, Server

_SECRET = SECRET.encode()
# What the standard does not allow as a value, though some parser takes it.
_TOKENS = [
    b"NaN", b"-NaN", b"nan", b"Infinity", b"-Infinity", b"inf", b"1e400", b"-1e400", b"1e99999",
    b'"\\ud800"', b'"\\udfff"', b'"\\ud800\\ud800"', b'"\\udc00\\ud800"', b'"\\u12"', b'"\\x41"', b'"\\"',
    b"'a'", b"undefined", b"None", b"True", b"+1", b"01", b"1.", b".5", b"1e", b"0x10", b"1_000", b"--1",
    b'"a\nb"', b'"\x00"', b'"\x1f"', b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"',
    b'"\xe2\x82"', b'"\x80"', b"/**/1", b"1//", b"[1,]", b"{,}", b'{"a" 1}', b'{"a":1,}', b"{1:2}", b"[1 2]",
]  # fmt: skip
_PLACES = [b"%s", b'{"a":%s}', b'{"model_name":%s}', b"[%s]", b'{"a":{"b":[%s]}}']
# What is JSON, yet no object of any request, or a strange one.
_ODD = [
    b"", b" ", b"\n", b"\x00", b"null", b"true", b"false", b"0", b"-0", b"1e308", b"5e-324", b'""', b'"a"',
    b"[]", b"[[]]", b"[{}]", b"{}{}", b"{} x", b"x {}", b"{", b"}", b"[", b"]", b'{"', b'{"a"', b'{"a":', b"{\\",
    b'{"":1}', b'{"__proto__":{}}', b'{"constructor":1}', b'{"__class__":"x"}', b'{"self":1}', b'{"$ref":"#"}',
    b'{"model_name":1,"model_name":2}', b'{"prompt":"a","prompt":["b"]}', b'{"a":1,"a":NaN}',
    b"9" * 5000, b'{"max_tokens":' + b"9" * 5000 + b"}", b'{"seed":-' + b"9" * 400 + b"}",
    b'{"max_tokens":18446744073709551616}', b'{"seed":9223372036854775808}', b"1" + b"0" * 30_000,
    b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b"\xfe\xff\x00{\x00}", b"{\x00}\x00", b"\x00{\x00}",
    b"\xff\xfe\x00\x00{\x00\x00\x00}\x00\x00\x00", b"\x1f\x8b\x08\x00" + b"\x00" * 20, b"+ADw-script+AD4-",
    b"[" * 200_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000, b"[[],[" * 50_000,
    b"[" * 1025 + b"]" * 1025, b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b'{"prompt":"' + b"a" * 900_000 + b'"}', b'{"' + b"k" * 900_000 + b'":1}', b'{"a":[' + b"1," * 400_000 + b"1]}",
    b"{" + b",".join(b'"k%d":1' % i for i in range(10_000)) + b"}",
    b"model_name=tiny&dataset=notes", b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
    b"--x\r\n\r\n{}\r\n--x--", b"!!python/object/apply:os.system [id]", b"\x80\x04\x95.", b"*3\r\n$3\r\nSET\r\n",
]  # fmt: skip
_VALID = orjson.dumps(
    {"model_name": "absent", "dataset": SECRET, "prompt": "é漢🐢", "history": [{"role": "user"}]}
)
WRONG_VALUES: list[Any] = [
    None, True, -1, 0.5, 10**30, "", SECRET, "NaN", "\x00", "\u202e" + SECRET, "a" * 3000, [], [SECRET], [[[]]],
    {}, {SECRET: SECRET}, [None], {"a": {"b": []}},
]  # fmt: skip


def raw_bodies() -> list[bytes]:
    found = [place % token for place, token in itertools.product(_PLACES, _TOKENS)]
    found += _ODD
    found += [_VALID[:end] for end in range(1, len(_VALID))]
    found += [_VALID[:at] + b"\xff" + _VALID[at:] for at in range(0, len(_VALID), 7)]
    return list(dict.fromkeys(found))


def chunked_bodies() -> Iterator[tuple[bytes, ...]]:
    """The same bytes in odd pieces, and one body far too large that never says its length."""
    yield (b"",) * 5000
    yield tuple(bytes([byte]) for byte in b'{"a":NaN}')
    yield tuple(bytes([byte]) for byte in _VALID)
    yield (b"", b"{", b"", b"}", b"")
    yield (b'{"a":"\xf0\x9f', b'\x90\xa2"', b"")
    yield (b'{"prompt":"', *(b"a" * 100_000 for _ in range(200)), b'"}')


def wrong_fields(server: Server, schema: dict[str, Any]) -> Iterator[bytes]:
    """A request whose every field in turn has a value of another type, or one too many or too few."""
    base = usual_request(server, schema)
    for name in base:
        yield _dumps({key: value for key, value in base.items() if key != name})
        for value in WRONG_VALUES:
            yield _dumps(base | {name: value})
    yield _dumps(base | {SECRET: 1})


def usual_request(server: Server, schema: dict[str, Any]) -> dict[str, Any]:
    """Every field with a value of its type; what it names is not there."""
    fields = server.resolve(schema).get("properties", {})
    return {name: _usual_value(server, field) for name, field in fields.items()}


def _usual_value(server: Server, field: dict[str, Any]) -> Any:
    field = server.resolve(field)
    if "const" in field or "enum" in field:
        return field.get("const", field.get("enum", [None])[0])
    if "anyOf" in field:
        return _usual_value(server, field["anyOf"][0])
    kind = field.get("type")
    if kind in ("integer", "number"):
        return field.get("default") or field.get("minimum") or 1
    if kind == "object":
        return usual_request(server, field)
    return {"boolean": False, "array": [], "string": "absent"}.get(str(kind))


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value) if _fits(value) else _huge(value)


def _fits(value: dict[str, Any]) -> bool:
    return all(not isinstance(item, int) or abs(item) < 2**63 for item in value.values())


def _huge(value: dict[str, Any]) -> bytes:
    marked = {key: "HUGE" if item == 10**30 else item for key, item in value.items()}
    return orjson.dumps(marked).replace(b'"HUGE"', b"1" + b"0" * 30)
