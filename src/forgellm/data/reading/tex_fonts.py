"""Characters of TeX's fonts, for PDFs that name a glyph by its number alone.

Such a PDF has brackets, Greek letters and ligatures at the places of control characters. Which
character a number means depends on the font: the encodings are OT1 (text), its variant for
typewriter fonts, OML (letters of formulas), OMS (signs) and OMX (large brackets), as in
"encguide.pdf" of LaTeX.
"""

from __future__ import annotations

import re

_OT1 = "Γ Δ Θ Λ Ξ Π Σ Υ Φ Ψ Ω ff fi fl ffi ffl ı ȷ ` ´ ˇ ˘ ¯ ˚ ¸ ß æ œ ø Æ Œ Ø".split()
_LIGATURES = range(0x0B, 0x10)
_TYPEWRITER = [*_OT1[:11], *"↑ ↓ ' ¡ ¿".split(), *_OT1[16:]]
_OML = "Γ Δ Θ Λ Ξ Π Σ Υ Φ Ψ Ω α β γ δ ϵ ζ η θ ι κ λ μ ν ξ π ρ σ τ υ φ χ".split()
_OMS = "− · × ∗ ÷ ⋄ ± ∓ ⊕ ⊖ ⊗ ⊘ ⊙ ○ ∘ • ≍ ≡ ⊆ ⊇ ≤ ≥ ≼ ≽ ∼ ≈ ⊂ ⊃ ≪ ≫ ≺ ≻".split()
_OMX = "( ) [ ] ⌊ ⌋ ⌈ ⌉ { } ⟨ ⟩ | ‖ / \\ ( ) ( ) [ ] ⌊ ⌋ ⌈ ⌉ { } ⟨ ⟩ / \\".split()
_T1 = "` ´ ˆ ˜ ¨ ˝ ˚ ˇ ˘ ¯ ˙ ¸ ˛ ‚ ‹ › “ ” „ « » – —".split()
_T1 = [*_T1, "", "₀", *"ı ȷ ff fi fl ffi ffl".split()]

_ENCODINGS = [
    (re.compile(r"(CM|LM|EU|tx|px|yh|ML)\w*EX|MathExtension", re.IGNORECASE), _OMX),
    (re.compile(r"(CM|tx|px|ML)B?SY|LM\w*Symbols", re.IGNORECASE), _OMS),
    (re.compile(r"(CM|tx|px|ML)MI|CMMIB|LM\w*MathItalic", re.IGNORECASE), _OML),
    (re.compile(r"CM(TT|SLTT|ITT|TCSC|VTT)", re.IGNORECASE), _TYPEWRITER),
    (re.compile(r"CM(R|B|TI|SL|SS|CSC|U|DUNH|FF|FIB)", re.IGNORECASE), _OT1),
    (re.compile(r"(EC|SF)(R|B|T|S|X|O)[A-Z]\w", re.IGNORECASE), _T1),
]
# Large brackets in pieces: the first piece stands for the whole.
_PIECES = {
    **dict.fromkeys(range(0xF8E5, 0xF8FF), ""),
    0xF8EB: "(",
    0xF8EE: "[",
    0xF8F1: "{",
    0xF8F6: ")",
    0xF8F9: "]",
    0xF8FC: "}",
}


def character_of(font: str, code: int) -> str | None:
    """What a glyph below U+0020, or a piece of a bracket, shows; None where that is not known.

    `font` is the font's name in the PDF, with or without the prefix of a subset ("ABCDEF+"). Bitmap
    fonts, as older papers have them, are without a name: there the ligatures alone are known.
    """
    if code in _PIECES:
        return _PIECES[code]
    if not font:
        return _OT1[code] if code in _LIGATURES else None
    name = font.rpartition("+")[2]
    for pattern, characters in _ENCODINGS:
        if pattern.match(name):
            return characters[code] if code < len(characters) else None
    return None
