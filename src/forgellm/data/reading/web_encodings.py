"""Which encoding a page means by its label, as browsers take it (https://encoding.spec.whatwg.org)."""

from __future__ import annotations

import codecs

from forgellm.data.reading.reader import Unreadable

# Labels that mean more than Python's codec of that name: what is written under them has the larger
# character set.
_MEANT = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    # What can be read as far as its declaration has one byte for each letter of it.
    "utf-16": "utf-8",
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}
_OTHER_NAMES = {
    "x-sjis": "shift_jis",
    "windows-31j": "shift_jis",
    "ks_c_5601-1987": "euc_kr",
    "x-gbk": "gbk",
    "x-x-big5": "big5",
    "unicode-1-1-utf-8": "utf-8",
    "macintosh": "mac_roman",
    "x-mac-roman": "mac_roman",
    "x-mac-cyrillic": "mac_cyrillic",
    "iso-8859-8-i": "iso8859-8",
    "dos-874": "cp874",
    "unicode": "utf-8",
}
# Bytes without a character in Windows' sets mean control characters there, which no text has.
_WITH_GAPS = frozenset({"cp1252", "cp1254", "cp874", "cp1253", "cp1255", "cp1257", "cp1258"})


def decode_label(raw: bytes, label: str) -> str:
    """The text of bytes whose encoding has this label. Raises Unreadable."""
    name = label.strip().lower()
    try:
        codec = codecs.lookup(_OTHER_NAMES.get(name, name)).name
        codec = codecs.lookup(_MEANT.get(codec, codec)).name
        return raw.decode(codec, "ignore" if codec in _WITH_GAPS else "strict")
    except LookupError:
        raise Unreadable(f"its encoding {name[:40]!r} is not known") from None
    except UnicodeDecodeError:
        raise Unreadable(f"not {name[:40]}, the encoding that it declares") from None
