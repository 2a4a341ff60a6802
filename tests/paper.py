"""Small real documents, made by hand: PDF, DOCX, ODT, EPUB."""

from __future__ import annotations

import zipfile
from io import BytesIO

CONTENT_TYPES = (
    '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    'wordprocessingml.document.main+xml"/></Types>'
)
RELATIONS = (
    '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/'
    'officeDocument" Target="word/document.xml"/></Relationships>'
)
WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
MATH = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
OFFICE = (
    'xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0" '
    'xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0" '
    'xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0" '
    'xmlns:draw="urn:oasis:names:tc:opendocument:xmlns:drawing:1.0" '
    'xmlns:style="urn:oasis:names:tc:opendocument:xmlns:style:1.0" '
    'xmlns:xlink="http://www.w3.org/1999/xlink"'
)


def zipped(parts: dict[str, str | bytes]) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def pdf(pages: list[str], encoding: str = "", font: str = "Helvetica") -> bytes:
    """Text in `font`, a line for each of a page's. `encoding` is a PDF object that says which
    characters the bytes mean."""
    drawings = []
    for text in pages:
        lines = " T* ".join(f"({_escaped(line)}) Tj" for line in text.split("\n"))
        drawings.append(f"BT /F1 12 Tf 14 TL 72 720 Td {lines} ET" if text else "0 0 m 9 9 l S")
    return drawn_pdf(drawings, encoding, font)


def placed_pdf(pages: list[list[tuple[float, float, str]]], font: str = "Helvetica") -> bytes:
    """Each line of a page with its place: points from the left and from the bottom."""
    drawings = [
        " ".join(f"BT /F1 10 Tf {x} {y} Td ({_escaped(text)}) Tj ET" for x, y, text in lines)
        for lines in pages
    ]
    return drawn_pdf(drawings, font=font)


def _escaped(text: str) -> str:
    for character in "\\()":
        text = text.replace(character, f"\\{character}")
    return "".join(c if " " <= c <= "~" else f"\\{ord(c):03o}" for c in text)


def drawn_pdf(drawings: list[str], encoding: str = "", font: str = "Helvetica") -> bytes:
    """A page for each content stream; its font is F1."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(drawings)))
    coded = f" /Encoding {encoding}" if encoding else ""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(drawings)} /Kids [{kids}] >>",
        f"<< /Type /Font /Subtype /Type1 /BaseFont /{font}{coded} >>",
    ]
    for number, drawing in enumerate(drawings):
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(drawing)} >>\nstream\n{drawing}\nendstream",
        ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    trailer = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
    return out + f"{trailer}startxref\n{len(out)}\n%%EOF\n".encode()


def docx(paragraphs: list[str], body: str | None = None, **more: str | bytes) -> bytes:
    """`more` are parts by their names."""
    inner = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    document = f'<?xml version="1.0"?><w:document {WORD} {MATH}><w:body>{body or inner}</w:body></w:document>'
    parts: dict[str, str | bytes] = {
        "[Content_Types].xml": CONTENT_TYPES,
        "_rels/.rels": RELATIONS,
        "word/document.xml": document,
        **more,
    }
    return zipped(parts)


def odt(body: str, styles: str = "", **parts: str | bytes) -> bytes:
    content = f'<?xml version="1.0"?><office:document-content {OFFICE}><office:automatic-styles>{styles}</office:automatic-styles><office:body><office:text>{body}</office:text></office:body></office:document-content>'
    return zipped(
        {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content, **parts}
    )


def epub(chapters: list[str], **parts: str | bytes) -> bytes:
    items = "".join(
        f'<item id="c{n}" href="text/c%20{n}.xhtml" media-type="application/xhtml+xml"/>'
        for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in reversed(range(len(chapters))))
    pages: dict[str, str | bytes] = {
        f"OEBPS/text/c {n}.xhtml": f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{text}</body></html>'
        for n, text in enumerate(chapters)
    }
    container = '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    package = f'<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{spine}</spine></package>'
    return zipped(
        {"META-INF/container.xml": container, "OEBPS/book.opf": package, **pages, **parts}
    )


def book(
    pages: dict[str, str | bytes],
    items: str,
    spine: str,
    *,
    guide: str = "",
    package: str = "OEBPS/book.opf",
    **parts: str | bytes,
) -> bytes:
    """An EPUB with these parts of its package, as they are written."""
    container = f'<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="{package}" media-type="application/oebps-package+xml"/></rootfiles></container>'
    opf = f'<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{spine}</spine>{guide}</package>'
    return zipped({"META-INF/container.xml": container, package: opf, **pages, **parts})
