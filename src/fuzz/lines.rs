//! Inputs as lines of text: printable ASCII is as it is, every other byte and the backslash are escaped. Lines that start
//! with `#` are comments.

use std::fmt::Write;

/// Returns the lines of a file that have an input.
pub(super) fn of(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

pub(super) fn escaped(input: &[u8]) -> String {
    let mut line = String::with_capacity(input.len());
    for (at, byte) in input.iter().enumerate() {
        match byte {
            b'\n' => line.push_str("\\n"),
            b'\t' => line.push_str("\\t"),
            b'\r' => line.push_str("\\r"),
            b'\0' => line.push_str("\\0"),
            b'\\' => line.push_str("\\\\"),
            b'#' if at == 0 => line.push_str("\\x23"),
            // An editor may take blanks at the end of a line away.
            b' ' if at + 1 == input.len() => line.push_str("\\x20"),
            b' '..=b'~' => line.push(char::from(*byte)),
            byte => write!(line, "\\x{byte:02x}").expect("a string takes all"),
        }
    }
    line
}

/// Returns the input of a line. `None` if it has an unknown escape.
pub(super) fn unescaped(line: &str) -> Option<Vec<u8>> {
    let mut input = Vec::with_capacity(line.len());
    let mut rest = line.as_bytes();
    while let [byte, after @ ..] = rest {
        (input, rest) = match (byte, after) {
            (b'\\', [b'x', hex @ ..]) => {
                let digits = std::str::from_utf8(hex.get(..2)?).ok()?;
                (with(input, u8::from_str_radix(digits, 16).ok()?), &hex[2..])
            }
            (b'\\', [letter, after @ ..]) => (with(input, plain(*letter)?), after),
            (b'\\', []) => return None,
            (byte, after) => (with(input, *byte), after),
        };
    }
    Some(input)
}

fn with(mut input: Vec<u8>, byte: u8) -> Vec<u8> {
    input.push(byte);
    input
}

fn plain(letter: u8) -> Option<u8> {
    match letter {
        b'n' => Some(b'\n'),
        b't' => Some(b'\t'),
        b'r' => Some(b'\r'),
        b'0' => Some(0),
        b'\\' => Some(b'\\'),
        _ => None,
    }
}

#[test]
fn any_input_survives_its_line() {
    let all: Vec<u8> = (0..=255).collect();
    for input in [&all[..], b"", b"#x", b"\\x41\\", b"\x00001", b"a#\n", b" a "] {
        let line = escaped(input);
        assert!(
            line.bytes().all(|byte| matches!(byte, b' '..=b'~'))
                && of(&line).count() <= 1
                && !line.ends_with(' '),
            "{line}"
        );
        assert_eq!(unescaped(&line).as_deref(), Some(input), "{line}");
    }
    for wrong in ["\\", "\\q", "\\x", "\\x4", "\\xzz"] {
        assert_eq!(unescaped(wrong), None, "{wrong}");
    }
}
