//! Text in a sheet's XML.

/// What an Excel cell holds, in UTF-16 code units.
pub(super) const MAX_TEXT: usize = 32_767;

/// Not allowed in XML, though Unicode strings may hold them.
const NOT_CHARACTERS: [&str; 2] = ["\u{fffe}", "\u{ffff}"];

/// The longest beginning of `text` that a cell can hold.
pub(super) fn cut(text: &str) -> &str {
    // A character has at least as many UTF-8 bytes as UTF-16 units.
    if text.len() <= MAX_TEXT {
        return text;
    }
    let mut units = 0;
    for (index, character) in text.char_indices() {
        units += character.len_utf16();
        if units > MAX_TEXT {
            return &text[..index];
        }
    }
    text
}

/// Whether XML readers may strip white space from the ends of this text.
pub(super) fn needs_preserving(text: &str) -> bool {
    let space = |byte: Option<&u8>| byte.is_some_and(|byte| matches!(byte, b'\t' | b'\n' | b' '));
    space(text.as_bytes().first()) || space(text.as_bytes().last())
}

/// Appends `text` escaped and says whether a character was written in Excel's `_xHHHH_` form.
///
/// That form is for the characters that XML 1.0 forbids, and for carriage returns, which XML
/// readers turn into line feeds (ISO/IEC 29500-1, 22.9.2.19). Text that looks like the form has
/// its underscore written in it, so that it reads back as it was.
pub(super) fn push_escaped(out: &mut Vec<u8>, text: &str) -> bool {
    let bytes = text.as_bytes();
    // Without a branch in the loop the compiler compares 16 or 32 bytes at a time; most texts
    // hold none of these.
    let special = bytes.iter().fold(false, |found, &byte| {
        let control = byte < 0x20 && byte != b'\t' && byte != b'\n';
        found | control | matches!(byte, b'&' | b'<' | b'>' | b'_' | 0xEF)
    });
    if !special {
        out.extend_from_slice(bytes);
        return false;
    }
    let mut escaped = false;
    let mut copied = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        let (replacement, length): (&[u8], usize) = match byte {
            b'&' => (b"&amp;", 1),
            b'<' => (b"&lt;", 1),
            b'>' => (b"&gt;", 1),
            b'_' if looks_escaped(&bytes[index..]) => (b"_x005F_", 1),
            0xEF if bytes[index..].starts_with(NOT_CHARACTERS[0].as_bytes()) => (b"_xFFFE_", 3),
            0xEF if bytes[index..].starts_with(NOT_CHARACTERS[1].as_bytes()) => (b"_xFFFF_", 3),
            b'\t' | b'\n' | 0x20.. => continue,
            control => (&control_form(control), 1),
        };
        escaped |= replacement[0] == b'_';
        out.extend_from_slice(&bytes[copied..index]);
        out.extend_from_slice(replacement);
        copied = index + length;
    }
    out.extend_from_slice(&bytes[copied..]);
    escaped
}

/// Whether this would read as an escaped character once what follows is escaped too: the
/// underscore that ends the form can be the first of the next one's.
fn looks_escaped(bytes: &[u8]) -> bool {
    match bytes {
        [b'_', b'x', a, b, c, d, rest @ ..] => {
            [a, b, c, d].into_iter().all(u8::is_ascii_hexdigit) && begins_with_underscore(rest)
        }
        _ => false,
    }
}

fn begins_with_underscore(rest: &[u8]) -> bool {
    match rest {
        [b'_' | 0..=8 | 0x0B..=0x1F, ..] => true,
        _ => NOT_CHARACTERS.iter().any(|text| rest.starts_with(text.as_bytes())),
    }
}

const fn control_form(control: u8) -> [u8; 7] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let (high, low) = (DIGITS[(control >> 4) as usize], DIGITS[(control & 15) as usize]);
    [b'_', b'x', b'0', b'0', high, low, b'_']
}
