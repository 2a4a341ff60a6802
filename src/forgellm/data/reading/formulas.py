"""Formulas as a line of text, close to LaTeX: `\\frac{a}{b}`, `x^2`, `\\sqrt{x}`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def local_name(node: Any) -> str:
    """An element's name without its namespace; empty for comments and processing instructions."""
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def text_of_omml(node: Any) -> str:
    """A formula of Office (`m:oMath`, `m:oMathPara`) or a part of one."""
    name = local_name(node)
    if name == "t":
        return node.text or ""
    if name.endswith("Pr") or name in ("del", "moveFrom", "instrText", "delText"):
        return ""
    write = _OMML.get(name)
    return write(node) if write else "".join(text_of_omml(child) for child in node)


def text_of_mathml(node: Any) -> str:
    """A formula in MathML: what it was written as where it says so, and else what it shows."""
    for inner in node.iter():
        if local_name(inner) == "annotation" and inner.text and inner.text.strip():
            return " ".join(inner.text.split())
    return " ".join("".join(_shown_mathml(node)).split())


def _shown_mathml(node: Any) -> Iterator[str]:
    name = local_name(node)
    if name in ("annotation", "annotation-xml"):
        return
    yield (node.text or "").strip()
    parts = ["".join(_shown_mathml(child)) for child in node]
    if name == "mfrac" and len(parts) == 2:
        yield f"\\frac{{{parts[0]}}}{{{parts[1]}}}"
    elif name == "msqrt":
        yield f"\\sqrt{{{''.join(parts)}}}"
    elif name in ("msup", "mover") and len(parts) == 2:
        yield parts[0] + _raised("^", parts[1])
    elif name in ("msub", "munder") and len(parts) == 2:
        yield parts[0] + _raised("_", parts[1])
    elif name in ("msubsup", "munderover") and len(parts) == 3:
        yield parts[0] + _raised("_", parts[1]) + _raised("^", parts[2])
    else:
        yield "".join(parts)


def _raised(sign: str, text: str) -> str:
    return "" if not text else f"{sign}{text}" if len(text) == 1 else f"{sign}{{{text}}}"


def _part(node: Any, name: str) -> str:
    """The text of a child, empty if there is none."""
    return "".join(text_of_omml(child) for child in node if local_name(child) == name)


def _setting(node: Any, name: str, default: str) -> str:
    """A value from an element's own properties, such as which brackets it has."""
    for properties in node:
        if local_name(properties).endswith("Pr"):
            for setting in properties:
                if local_name(setting) == name:
                    values = [v for key, v in setting.attrib.items() if key.endswith("val")]
                    return str(values[0]) if values else ""
    return default


def _fraction(node: Any) -> str:
    return f"\\frac{{{_part(node, 'num')}}}{{{_part(node, 'den')}}}"


def _root(node: Any) -> str:
    degree = _part(node, "deg")
    return f"\\sqrt{f'[{degree}]' if degree else ''}{{{_part(node, 'e')}}}"


def _scripts(node: Any) -> str:
    return _part(node, "e") + _raised("_", _part(node, "sub")) + _raised("^", _part(node, "sup"))


def _large_operator(node: Any) -> str:
    return _setting(node, "chr", "∫") + _scripts_before(node)


def _brackets(node: Any) -> str:
    between = _setting(node, "sepChr", "|").join(_elements(node))
    return _setting(node, "begChr", "(") + between + _setting(node, "endChr", ")")


def _elements(node: Any) -> list[str]:
    return [text_of_omml(child) for child in node if local_name(child) == "e"]


def _lines(node: Any) -> str:
    return "; ".join(_elements(node))


def _accent(node: Any) -> str:
    return _part(node, "e") + _setting(node, "chr", "\u0302")


def _overline(node: Any) -> str:
    return f"\\overline{{{_part(node, 'e')}}}"


def _scripts_before(node: Any) -> str:
    return _raised("_", _part(node, "sub")) + _raised("^", _part(node, "sup")) + _part(node, "e")


def _matrix(node: Any) -> str:
    rows = [child for child in node if local_name(child) == "mr"]
    return "; ".join(", ".join(text_of_omml(cell) for cell in row) for row in rows)


def _function(node: Any) -> str:
    return f"{_part(node, 'fName')} {_part(node, 'e')}"


def _limit(sign: str) -> Callable[[Any], str]:
    return lambda node: _part(node, "e") + _raised(sign, _part(node, "lim"))


_OMML: dict[str, Callable[[Any], str]] = {
    "f": _fraction,
    "rad": _root,
    "sSup": _scripts,
    "sSub": _scripts,
    "sSubSup": _scripts,
    "nary": _large_operator,
    "d": _brackets,
    "eqArr": _lines,
    "acc": _accent,
    "bar": _overline,
    "sPre": _scripts_before,
    "m": _matrix,
    "func": _function,
    "limLow": _limit("_"),
    "limUpp": _limit("^"),
}
