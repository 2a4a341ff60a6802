"""HTML, EPUB, e-mail, notebooks and subtitles: what of them is text, and what stands around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from forgellm.data.reading.epub import read_epub
from forgellm.data.reading.html import decode_html, text_of_html
from forgellm.data.reading.mail import read_eml, read_mbox
from forgellm.data.reading.notebook import read_notebook
from forgellm.data.reading.reader import Reader, Unreadable, only_text
from forgellm.data.reading.subtitles import read_subtitles
from paper import book, zipped


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[str]]:
    """The texts of a file with this content; what is skipped is added to `told`."""

    def read(reader: Reader, content: str | bytes, told: list[str] | None = None) -> list[str]:
        path = tmp_path / "file"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        skipped = [] if told is None else told
        return [text for _, text in reader(path, lambda why, n: skipped.append(f"{why}: {n}"))]

    return read


TEXINFO = (
    '<div class="header"><p>Next: <a href="b.html" accesskey="n" rel="next">Sluices</a>, Previous: '
    '<a href="a.html" rel="prev">Weirs</a>, Up: <a href="i.html" rel="up">Water</a> &nbsp; '
    '[<a href="toc.html" rel="contents">Contents</a>][<a href="x.html" rel="index">Index</a>]</p></div>'
)
DOCBOOK = (
    '<div class="navheader"><table><tr><th colspan="3">Chapter 4. Of mills</th></tr><tr><td><a accesskey="p" '
    'href="a.html">Prev</a></td><th>Part II</th><td><a accesskey="n" href="b.html">Next</a></td></tr></table></div>'
)
LATEX2HTML = (
    '<b>Next:</b> <a href="b.html">Sluices</a> <b>Up:</b> <a href="i.html">Water</a> <b>Previous:</b> '
    '<a href="a.html">Weirs</a> '
)


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        (f"{TEXINFO}<h2>Mills</h2><p>They grind.</p><hr>{TEXINFO}", "Mills\nThey grind."),
        (f"{DOCBOOK}<h2>Mills</h2><p>They grind.</p>", "Mills\nThey grind."),
        (f"<div>{LATEX2HTML}</div><h2>Mills</h2><p>They grind.</p>", "Mills\nThey grind."),
        (
            '<p><a href="a.html">&laquo; Previous</a> | <a href="b.html">Next &raquo;</a></p><p>They grind.</p>',
            "They grind.",
        ),
        # A text that has such a link is a text; a list of pages is one; a page of links stays.
        (
            '<p>The mill grinds all night, as was told in the chapter before this one, until the miller comes, '
            'and then goes on to the <a rel="next" href="b.html">next chapter</a>.</p>',
            "The mill grinds all night, as was told in the chapter before this one, until the miller comes, "
            "and then goes on to the next chapter.",
        ),
        (
            '<p>Read:</p><ul><li><a href="a">Weirs</a></li><li><a href="b">Index of mills</a></li><li><a href="c">Home</a></li>'
            "<li><a href='d'>Sluices</a></li></ul>",
            "Read:\nWeirs\nIndex of mills\nHome\nSluices",
        ),
        (TEXINFO, "Next: Sluices, Previous: Weirs, Up: Water   [Contents][Index]"),
        # Anchors, and what is not shown.
        (
            '<h2>Mills<a class="headerlink" href="#m">¶</a></h2><p>Note ¶ and <a href="x">§ 4</a>'
            '<a href="#p"> § </a><a aria-hidden="true" href="#q">link</a></p>',
            "Mills\nNote ¶ and § 4",
        ),
        (
            '<p hidden>secret</p><p style="color:red; DISPLAY : none">secret</p><p style="display:block">Seen</p>'
            "<div hidden><p hidden>secret</p></div>",
            "Seen",
        ),
        # Tables of data, and tables that lay out a page.
        (
            "<table><caption>Grain</caption><tr><th>Kind</th><th>Tons<br>a year</th></tr>"
            "<tr><td><p>Rye</p></td><td>7</td></tr><tr><td></td><td>8</td></tr></table>",
            "Grain\nKind\tTons a year\nRye\t7\n\t8",
        ),
        (
            "<table><tr><td>Left</td><td><h1>Mills</h1><p>One.</p><table><tr><td>a</td><td>b</td></tr></table></td></tr></table>",
            "Left\nMills\nOne.\na\tb",
        ),
        (
            '<table><tr><td class="linenos"><pre>1\n2</pre></td><td><pre>if x:\n\n    y\tz</pre></td></tr></table>',
            "if x:\n\n    y\tz",
        ),
        # Formulas as they were written.
        ('<p>Let <math alttext="x^2"><msup><mi>x</mi><mn>2</mn></msup></math> be.</p>', "Let x^2 be."),
        (
            '<p><span class="katex"><span class="katex-mathml"><math><semantics><mi>a</mi><annotation '
            'encoding="application/x-tex">\\alpha</annotation></semantics></math></span><span class="katex-html" '
            'aria-hidden="true">α</span></span>, <script type="math/tex">\\beta</script></p>',
            "\\alpha , \\beta",
        ),
        (
            '<p><span style="display: none"><math alttext="y"><mi>y</mi></math></span><img class="math-image" alt="y"></p>',
            "y",
        ),
        ("<p>10&nbsp;km<br>a &amp; <q>b</q></p>", "10 km\na & “b”"),
        ("<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>", "a\nb\nc"),
        ("<ruby>kanji<rp>[</rp><rt>kana</rt><rp>]</rp></ruby>", "kanji(kana)"),
        ("<p>a\x1e\x1fb</p>", "a b"),
    ],
)  # fmt: skip
def test_of_html_what_its_reader_sees(markup: str, expected: str) -> None:
    assert text_of_html(f"<html><body>{markup}</body></html>") == expected


def test_a_page_with_very_many_links_back_is_read_in_linear_time() -> None:
    section = '<h2>Mills</h2><p>They grind.</p><p><a href="#top">Top</a> <a href="#i">Index</a></p>'
    text = text_of_html(f"<body><div>{section * 10_000}</div></body>")
    assert text == "\n".join(["Mills\nThey grind."] * 10_000)


@pytest.mark.parametrize(
    ("label", "raw", "text"),
    [
        ("iso-8859-1", b"\x93Na\xefve\x94 \x80 \x81", "“Naïve” €"),
        ("shift_jis", "①は".encode("cp932"), "①は"),
        ("gb2312", "水車€".encode("gb18030"), "水車€"),
        ("x-sjis", "水車".encode("cp932"), "水車"),
        ("windows-1251", "Мельница".encode("cp1251"), "Мельница"),
        ("utf-8", "Größe".encode("utf-16"), "Größe"),
        ("iso-8859-1", "Größe".encode(), "Größe"),
    ],
)
def test_a_page_is_in_the_encoding_that_browsers_take(label: str, raw: bytes, text: str) -> None:
    head = f'<meta charset="{label}">'
    page = (
        head.encode() + raw if not raw.startswith(b"\xff\xfe") else (head + text).encode("utf-16")
    )
    assert text_of_html(decode_html(page)) == text


@pytest.mark.parametrize("label", ["utf-8", "klingon", "euc-jp"])
def test_a_page_that_is_not_in_its_encoding_is_told(label: str) -> None:
    with pytest.raises(Unreadable):
        decode_html(f'<meta charset="{label}">'.encode() + b"\xff\xfa\x00\xff")


def test_no_text_has_control_characters_or_soft_hyphens() -> None:
    assert (
        only_text("a\x00\x07b\rc\r\nd\x0ce\x85f\ud800\uffff\u00adg\th\x9f") == "ab\nc\nd\ne\nfg\th"
    )


def item(name: str, more: str = "", kind: str = "application/xhtml+xml") -> str:
    return f'<item id="{name}" href="{name}.xhtml" media-type="{kind}" {more}/>'


def refer(*names: str) -> str:
    return "".join(f'<itemref idref="{name}"/>' for name in names)


def page(text: str) -> str:
    return f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body><p>{text}</p></body></html>'


def test_of_an_epub_the_chapters_in_their_order(read: Callable[..., list[str]]) -> None:
    pages: dict[str, str | bytes] = {
        f"OEBPS/{name}.xhtml": page(name)
        for name in ("one", "two", "notes", "nav", "cover", "gone too", "Ünder")
    }
    pages["OEBPS/latin.xhtml"] = (
        b'<?xml version="1.0" encoding="iso-8859-1"?><html xmlns="http://www.w3.org/1999/xhtml"><body>M\xfchle</body></html>'
    )
    items = (
        item("one") + item("two") + item("notes") + item("nav", 'properties="nav"') + item("latin")
        + item("lost") + item("map", 'fallback="cover"', "image/svg+xml") + item("cover")
        + item("film", kind="video/mp4") + item("%C3%9Cnder")
    )  # fmt: skip
    spine = (
        refer("nav", "two", "one", "map", "latin", "lost", "film", "nowhere", "%C3%9Cnder", "one")
        + '<itemref idref="notes" linear="no"/>'
    )
    told: list[str] = []
    (text,) = read(read_epub, book(pages, items, spine), told)
    assert text.split("\n\n") == ["two", "one", "cover", "Mühle", "Ünder"]
    assert told == [
        "it lacks lost.xhtml: 6",
        "no page of text: 7",
        "no page of text: 8",
        "beside the reading order: 11",
    ]


def test_an_older_epub_names_its_contents_in_a_guide(read: Callable[..., list[str]]) -> None:
    pages: dict[str, str | bytes] = {"one.xhtml": page("one"), "toc.xhtml": page("Contents")}
    guide = '<guide><reference type="toc" href="toc.xhtml#top"/></guide>'
    content = book(
        pages, item("one") + item("toc"), refer("toc", "one"), guide=guide, package="b.opf"
    )
    assert read(read_epub, content) == ["one"]


def test_encrypted_pages_of_an_epub_are_told_and_scrambled_fonts_are_none(
    read: Callable[..., list[str]],
) -> None:
    def locked(algorithm: str, *names: str) -> str:
        entries = "".join(
            f'<enc:EncryptedData><enc:EncryptionMethod Algorithm="{algorithm}"/><enc:CipherData>'
            f'<enc:CipherReference URI="{name}"/></enc:CipherData></enc:EncryptedData>'
            for name in names
        )
        return f'<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:enc="http://www.w3.org/2001/04/xmlenc#">{entries}</encryption>'

    pages: dict[str, str | bytes] = {f"OEBPS/{name}.xhtml": page(name) for name in ("one", "two")}
    items, spine = item("one") + item("two"), refer("one", "two")
    aes = "http://www.w3.org/2001/04/xmlenc#aes256-cbc"
    lock = "META-INF/encryption.xml"
    told: list[str] = []
    half = book(pages, items, spine, **{lock: locked(aes, "OEBPS/one.xhtml")})
    assert read(read_epub, half, told) == ["two"]
    assert told == ["encrypted: 1"]
    whole = book(pages, items, spine, **{lock: locked(aes, "OEBPS/one.xhtml", "OEBPS/two.xhtml")})
    with pytest.raises(Unreadable, match="encrypted"):
        read(read_epub, whole)
    fonts = locked("http://www.idpf.org/2008/embedding", "OEBPS/one.xhtml")
    assert read(read_epub, book(pages, items, spine, **{lock: fonts})) == ["one\n\ntwo"]
    with pytest.raises(Unreadable, match="lacks"):
        read(read_epub, zipped({"META-INF/container.xml": "<c><rootfile full-path='x.opf'/></c>"}))


MIXED = (
    "Subject: Corn\r\nContent-Type: multipart/mixed; boundary=o\r\n\r\n"
    "--o\r\nContent-Type: multipart/alternative; boundary=i\r\n\r\n"
    "--i\r\nContent-Type: text/html\r\n\r\n<p>As a page</p>\r\n"
    "--i\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    "The M=FChle grinds =\r\nall night. =93Yes=94\r\n--i--\r\n"
    "--o\r\nContent-Type: text/plain\r\nContent-Disposition: attachment; filename=a.txt\r\n\r\nsecret\r\n"
    "--o\r\nContent-Type: message/rfc822\r\n\r\nSubject: Before\r\n\r\nIt turns.\r\n"
    "--o\r\nContent-Type: text/plain\r\n\r\nThe list's last words.\r\n--o--\r\n"
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            MIXED,
            "Corn\n\nThe Mühle grinds all night. “Yes”\n\nBefore\n\nIt turns.\n\nThe list's last words.",
        ),
        # What a message says of its encoding may be wrong, or nothing.
        (b"Content-Type: text/plain; charset=utf-8\n\nM\xfchle\n", "Mühle"),
        (b"Content-Type: text/plain; charset=x-none\n\nM\xc3\xbchle\n", "Mühle"),
        (b"Content-Type: text/plain; charset=us-ascii\n\nM\xfchle\n", "Mühle"),
        (b"Content-Type: text/plain; charset=ks_c_5601-1987\n\n" + "물".encode("cp949"), "물"),
        (b"Content-Type: text/html\n\n<meta charset=windows-1251>" + "Да".encode("cp1251"), "Да"),
        (
            "Content-Type: text/plain; format=flowed\n\nIt grinds \nall night.\n\n> quoted \n> too\n-- \nMiller",
            "It grinds all night.\n\n> quoted \n> too\n-- \nMiller",
        ),
        # A plain form that is empty is no form.
        (
            "Content-Type: multipart/alternative; boundary=i\n\n--i\nContent-Type: text/plain\n\n\n"
            "--i\nContent-Type: text/html\n\n<p>As a page</p>\n--i--\n",
            "As a page",
        ),
    ],
)
def test_of_a_message_what_its_reader_is_shown(
    read: Callable[..., list[str]], content: str | bytes, expected: str
) -> None:
    assert read(read_eml, content) == [expected]


def test_quoted_lines_of_an_mbox_are_as_they_were(read: Callable[..., list[str]]) -> None:
    content = (
        "From a@b Thu Jan  1 00:00:00 2026\nSubject: A\n\n>From the mill\n>>From it\n> From it\n"
    )
    assert read(read_mbox, content) == ["A\n\nFrom the mill\n>From it\n> From it"]


def test_notebooks_of_other_languages_and_versions(read: Callable[..., list[str]]) -> None:
    picture = f"![p](data:image/png;base64,{'A' * 400})"
    cells = [
        {"cell_type": "code", "source": ["x <- 1"], "outputs": [{"text": "secret"}]},
        {"cell_type": "raw", "source": "\\LaTeX"},
        {"cell_type": "markdown", "source": f"See {picture}."},
    ]
    notebook = {"cells": cells, "metadata": {"kernelspec": {"language": "R"}}}
    expected = ["```R\nx <- 1\n```\n\n\\LaTeX\n\nSee ![p]()."]
    assert read(read_notebook, json.dumps(notebook)) == expected
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["x = 1"]}]}]}
    assert read(read_notebook, json.dumps(old)) == ["```python\nx = 1\n```"]


def test_what_is_said_twice_in_subtitles_stays_and_what_rolls_is_taken_once(
    read: Callable[..., list[str]],
) -> None:
    times = "{}\n00:00:{:02},000 --> 00:00:{:02},000\n{}\n\n"
    shown = [(1, 2, "No."), (4, 5, "No."), (6, 7, "The mill"), (7, 8, "The mill\nturns"), (8, 9, "turns\n&lt;fast&gt;")]  # fmt: skip
    content = "".join(times.format(n, *cue) for n, cue in enumerate(shown))
    assert read(read_subtitles, content) == ["No.\nNo.\nThe mill\nturns\n<fast>"]
