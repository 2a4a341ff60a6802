"""What is taken of a document of an office program, and what of it nobody sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgellm.data.reading.opendocument import read_odt
from forgellm.data.reading.reader import Unreadable
from forgellm.data.reading.word import read_docx
from paper import MATH, RELATIONS, WORD, docx, odt, zipped

ALTERNATIVES = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'


def of_docx(folder: Path, content: bytes, told: list[str] | None = None) -> str:
    path = folder / "a.docx"
    path.write_bytes(content)
    ((_, text),) = read_docx(path, lambda reason, number: (told or []).append(reason))
    return text


def of_odt(folder: Path, content: bytes) -> str:
    path = folder / "a.odt"
    path.write_bytes(content)
    ((_, text),) = read_odt(path, lambda reason, number: None)
    return text


def run(text: str, properties: str = "") -> str:
    return f"<w:r><w:rPr>{properties}</w:rPr><w:t>{text}</w:t></w:r>"


def paragraph(*runs: str) -> str:
    return f"<w:p>{''.join(runs)}</w:p>"


def m(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


BOX = "<w:txbxContent><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:txbxContent>"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # Changes: what stands in the document once they are accepted.
        (
            paragraph(
                run("The mill "),
                f"<w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins>{run('turns')}</w:ins>",
                f"<w:moveFrom>{run(' at dusk')}</w:moveFrom>",
                f"<w:moveTo>{run(' at dawn')}</w:moveTo>",
                run("."),
            ),
            "The mill turns at dawn.",
        ),
        (
            "<w:tbl><w:tr><w:trPr><w:del/></w:trPr><w:tc>" + paragraph(run("gone")) + "</w:tc></w:tr>"
            "<w:tr><w:tc>" + paragraph(run("a")) + paragraph(run("b")) + "</w:tc><w:tc/><w:tc>"
            + paragraph(run("c")) + "</w:tc></w:tr></w:tbl>",
            "a b\t\tc",
        ),
        # Hidden, by itself and by its style; what says that it is not hidden.
        (
            paragraph(run("Seen"), run("secret", "<w:vanish/>"), run(" too", '<w:vanish w:val="0"/>'))
            + '<w:p><w:pPr><w:pStyle w:val="Hid"/></w:pPr>' + run("secret") + "</w:p>"
            + paragraph(run("secret", '<w:rStyle w:val="HidToo"/>')),
            "Seen too",
        ),
        # A field shows its result, not its code; a comment is no text; a control may be unfilled.
        (
            paragraph(
                '<w:r><w:fldChar w:fldCharType="begin"/></w:r><w:r><w:instrText>PAGEREF x</w:instrText></w:r>'
                '<w:r><w:fldChar w:fldCharType="separate"/></w:r>', run("Page 4"),
                '<w:fldSimple w:instr="DATE">' + run(", today") + "</w:fldSimple>",
                '<w:r><w:commentReference w:id="0"/></w:r>',
                "<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>" + run("Click here") + "</w:sdtContent></w:sdt>",
                "<w:sdt><w:sdtContent>" + run(" it is") + "</w:sdtContent></w:sdt>",
            ),
            "Page 4, today it is",
        ),
        # Characters that are elements.
        (
            paragraph(
                "<w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t>"
                '<w:softHyphen/><w:t>e</w:t><w:sym w:font="Symbol" w:char="F061"/>'
                '<w:sym w:font="Wingdings" w:char="F0FC"/><w:sym w:font="Arial" w:char="00B5"/></w:r>'
            ),
            "a\tb\nc\u2011deα✓µ",
        ),
        # Text boxes have one form for new programs and one for old ones.
        (
            paragraph(
                run("Before"),
                f"<w:r><mc:AlternateContent {ALTERNATIVES}><mc:Choice><w:drawing>{BOX.format('Boxed')}</w:drawing>"
                f"</mc:Choice><mc:Fallback><w:pict>{BOX.format('Boxed')}</w:pict></mc:Fallback></mc:AlternateContent></w:r>",
                f"<w:r><mc:AlternateContent {ALTERNATIVES}><mc:Choice/><mc:Fallback><w:pict>{BOX.format('Old')}</w:pict>"
                "</mc:Fallback></mc:AlternateContent></w:r>",
            ) + paragraph(run("After")),
            "Before\nBoxed\nOld\nAfter",
        ),
        (
            paragraph(
                "<w:r><w:ruby><w:rt><w:r><w:t>kana</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>kanji</w:t></w:r>"
                "</w:rubyBase></w:ruby></w:r>"
            ),
            "kanji(kana)",
        ),
    ],
)  # fmt: skip
def test_of_word_what_its_reader_sees(tmp_path: Path, body: str, expected: str) -> None:
    styles = (
        f'<w:styles {WORD}><w:style w:styleId="Hid"><w:rPr><w:vanish/></w:rPr></w:style>'
        '<w:style w:styleId="HidToo"><w:basedOn w:val="Hid"/></w:style></w:styles>'
    )
    assert of_docx(tmp_path, docx([], body, **{"word/styles.xml": styles})) == expected


def test_notes_of_word_stand_at_the_end(tmp_path: Path) -> None:
    def part(kind: str, *notes: str) -> str:
        inner = "".join(
            f'<w:{kind} w:id="{n}">{paragraph(f"<w:r><w:{kind}Ref/></w:r>", run(note))}</w:{kind}>'
            for n, note in enumerate(notes, 1)
        )
        return f"<w:{kind}s {WORD}>{inner}</w:{kind}s>"

    body = paragraph(
        run("Corn"),
        '<w:r><w:footnoteReference w:id="2"/></w:r>',
        run(" and rye"),
        '<w:r><w:endnoteReference w:id="1"/></w:r><w:r><w:footnoteReference w:id="9"/></w:r>',
    )
    told: list[str] = [""]
    content = docx(
        [],
        body,
        **{
            "word/footnotes.xml": part("footnote", "Unused.", "Or maize."),
            "word/endnotes.xml": part("endnote", "See below."),
            "word/comments.xml": f"<w:comments {WORD}>{paragraph(run('secret'))}</w:comments>",
            "word/header1.xml": f"<w:hdr {WORD}>{paragraph(run('Head'))}</w:hdr>",
        },
    )
    assert of_docx(tmp_path, content, told) == ("Corn[1] and rye[2]\n[1] Or maize.\n[2] See below.")
    assert told[1:] == ["footnote not found"]


def test_formulas_of_word_are_text(tmp_path: Path) -> None:
    formula = (
        f"{m('E=m')}<m:sSup><m:e>{m('c')}</m:e><m:sup>{m('2')}</m:sup></m:sSup>"
        f"<m:f><m:fPr/><m:num>{m('a+b')}</m:num><m:den>{m('2')}</m:den></m:f>"
        f'<m:nary><m:naryPr><m:chr m:val="∑"/></m:naryPr><m:sub>{m("i=1")}</m:sub><m:sup>{m("n")}</m:sup>'
        f"<m:e><m:rad><m:deg/><m:e>{m('x')}</m:e></m:rad></m:e></m:nary>"
        f'<m:d><m:dPr><m:begChr m:val="["/><m:endChr m:val="]"/></m:dPr><m:e>{m("p")}</m:e><m:e>{m("q")}</m:e></m:d>'
        f"<m:m><m:mr><m:e>{m('1')}</m:e><m:e>{m('0')}</m:e></m:mr><m:mr><m:e>{m('0')}</m:e><m:e>{m('1')}</m:e></m:mr></m:m>"
    )
    body = (
        paragraph(run("Let "), f"<m:oMath>{formula}</m:oMath>", run(" be."))
        + f"<w:p><m:oMathPara><m:oMath>{m('y=0')}</m:oMath></m:oMathPara></w:p>"
    )
    assert of_docx(tmp_path, docx([], body)) == (
        r"Let E=mc^2\frac{a+b}{2}∑_{i=1}^n\sqrt{x}[p|q]1, 0; 0, 1 be." + "\ny=0"
    )


def test_a_word_document_may_lie_elsewhere_and_be_in_the_strict_form(tmp_path: Path) -> None:
    strict = "http://purl.oclc.org/ooxml/wordprocessingml/main"
    parts: dict[str, str | bytes] = {
        "_rels/.rels": RELATIONS.replace("word/document.xml", "/text/main.xml"),
        "text/main.xml": f'<w:document xmlns:w="{strict}" {MATH}><w:body>'
        f"{paragraph(run('Found.'))}</w:body></w:document>",
    }
    assert of_docx(tmp_path, zipped(parts)) == "Found."


@pytest.mark.parametrize("read", [of_docx, of_odt])
def test_documents_with_a_password_are_told(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(Unreadable, match="encrypted"):
        read(tmp_path, bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))


HIDDEN = '<style:style style:name="T9" style:family="text"><style:text-properties text:display="none"/></style:style>'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            '<text:tracked-changes><text:changed-region text:id="c"><text:deletion><office:change-info/>'
            "<text:p>gone</text:p></text:deletion></text:changed-region></text:tracked-changes>"
            '<text:p>The mill <text:change text:change-id="c"/><text:change-start text:change-id="d"/>turns'
            '<text:change-end text:change-id="d"/>.</text:p>',
            "The mill turns.",
        ),
        (
            "<text:p>Corn<office:annotation><text:p>secret</text:p></office:annotation>"
            "<text:note><text:note-citation>i</text:note-citation><text:note-body><text:p>Or maize.</text:p>"
            "</text:note-body></text:note> and<text:note><text:note-body><text:p>Both.</text:p></text:note-body>"
            "</text:note> rye</text:p><text:p>End.</text:p>",
            "Corn[1] and[2] rye\nEnd.\n[1] Or maize.\n[2] Both.",
        ),
        (
            '<text:section text:display="none"><text:p>secret</text:p></text:section>'
            '<text:section text:display="condition" text:is-hidden="true"><text:p>secret</text:p></text:section>'
            '<text:section text:display="true"><text:p>Seen<text:span text:style-name="T9">secret</text:span></text:p></text:section>'
            '<text:p><text:hidden-paragraph text:is-hidden="true"/>secret</text:p>'
            '<text:p>a<text:hidden-text text:string-value="s">secret</text:hidden-text></text:p>',
            "Seen\na",
        ),
        (
            "<table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>Grain</text:p>"
            "</table:table-cell><table:table-cell><text:p>Tons</text:p><text:p>a year</text:p></table:table-cell>"
            "</table:table-row></table:table-header-rows><table:table-row><table:table-cell><text:p>Rye</text:p></table:table-cell>"
            '<table:table-cell table:number-columns-repeated="2"><text:p>7</text:p></table:table-cell>'
            '<table:table-cell table:number-columns-repeated="9000"/></table:table-row></table:table>',
            "Grain\tTons a year\nRye\t7\t7",
        ),
        (
            "<text:list><text:list-item><text:p>One</text:p><text:list><text:list-item><text:p>Two</text:p>"
            "</text:list-item></text:list></text:list-item></text:list>",
            "One\nTwo",
        ),
        (
            "<text:p>\n  Spaces\n  of the file<text:s/><text:s text:c=\"2\"/>x<text:tab/>y<text:line-break/>z\n</text:p>",
            "Spaces of the file   x\ty\nz",
        ),
        (
            '<text:p>Framed<draw:frame><draw:text-box><text:p>box</text:p></draw:text-box></draw:frame>'
            "<draw:custom-shape><text:p>shape</text:p></draw:custom-shape> text</text:p>",
            "Framed text\nbox\nshape",
        ),
        (
            '<text:p>Let <draw:frame><draw:object xlink:href="./Object 1"/></draw:frame> be.</text:p>'
            '<text:p><draw:frame><draw:object><math xmlns="http://www.w3.org/1998/Math/MathML"><mfrac><mi>a</mi><mn>2</mn>'
            "</mfrac><msup><mi>x</mi><mn>3</mn></msup></math></draw:object></draw:frame></text:p>",
            "Let a over b be.\n\\frac{a}{2}x^3",
        ),
        (
            "<text:p><text:ruby><text:ruby-base>kanji</text:ruby-base><text:ruby-text>kana</text:ruby-text></text:ruby></text:p>",
            "kanji(kana)",
        ),
    ],
)  # fmt: skip
def test_of_opendocument_what_its_reader_sees(tmp_path: Path, body: str, expected: str) -> None:
    formula = (
        '<math xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mi>a</mi>'
        '<annotation encoding="StarMath 5.0">a over b</annotation></semantics></math>'
    )
    header = "<office:document-styles xmlns:office='o' xmlns:text='t'><text:p>Head</text:p></office:document-styles>"
    content = odt(body, HIDDEN, **{"Object 1/content.xml": formula, "styles.xml": header})
    assert of_odt(tmp_path, content) == expected
