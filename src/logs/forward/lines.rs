//! Splits output into lines, as docker does: a line that is longer than a limit is sent in parts. Pure.
//!
//! Source of the facts: moby `daemon/logger/copier.go` (28.5).

use std::time::SystemTime;

use crate::logs::Stream;

/// Maximum length of a line, or of a part of one, in bytes.
pub(super) const MAX_LINE_BYTES: usize = 16 << 10;

/// Maximum number of lines that are split off at once: each takes more memory than its text may have.
const MAX_LINES: usize = 1024;

/// A line of output without its end, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub stream: Stream,
    pub text: Vec<u8>,
    pub at: SystemTime,
    pub part: Option<Part>,
}

/// A line's part: its number, from 1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The line's id, by which its parts are put together.
    pub line_id: String,
    pub ordinal: u32,
    pub is_last: bool,
}

/// The splitter of one stream's output.
pub(super) struct Splitter {
    stream: Stream,
    /// Id, number and time of the line whose last part is still to come.
    open: Option<(String, u32, SystemTime)>,
    new_id: fn() -> String,
}

impl Splitter {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, open: None, new_id }
    }

    /// Splits lines off `head`, the output that waits, and returns them with the number of bytes that they are made
    /// from: all up to [`MAX_LINES`]. The rest is an unfinished line: it is split off as a part if it is too long, or if
    /// `no_more` can be seen of it.
    pub(super) fn split(&mut self, head: &[u8], no_more: bool, at: SystemTime) -> (Vec<Line>, usize) {
        let (mut lines, mut taken) = (Vec::new(), 0);
        while lines.len() < MAX_LINES {
            let rest = &head[taken..];
            match rest.iter().take(MAX_LINE_BYTES + 1).position(|byte| *byte == b'\n') {
                Some(end) => {
                    lines.push(self.line(&rest[..end], true, at));
                    taken += end + 1;
                }
                None if rest.len() >= MAX_LINE_BYTES || (no_more && !rest.is_empty()) => {
                    let length = rest.len().min(MAX_LINE_BYTES);
                    lines.push(self.line(&rest[..length], false, at));
                    taken += length;
                }
                None => break,
            }
        }
        (lines, taken)
    }

    fn line(&mut self, text: &[u8], is_finished: bool, at: SystemTime) -> Line {
        let (stream, text) = (self.stream, text.to_owned());
        let (line_id, ordinal, began_at) = match self.open.take() {
            None if is_finished => return Line { stream, text, at, part: None },
            None => ((self.new_id)(), 1, at),
            Some((line_id, ordinal, began_at)) => (line_id, ordinal + 1, began_at),
        };
        if !is_finished {
            self.open = Some((line_id.clone(), ordinal, began_at));
        }
        Line { stream, text, at: began_at, part: Some(Part { line_id, ordinal, is_last: is_finished }) }
    }
}

/// Returns a random id of 64 hexadecimal digits.
pub(super) fn new_id() -> String {
    let mut random = [0; 32];
    // The kernel's random numbers don't fail once it has some.
    let _ = fill_random(&mut random);
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fills a buffer with random bytes.
pub(super) fn fill_random(buffer: &mut [u8]) -> Result<(), rustls::crypto::GetRandomFailed> {
    rustls::crypto::ring::default_provider().secure_random.fill(buffer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: SystemTime = SystemTime::UNIX_EPOCH;

    fn splitter() -> Splitter {
        Splitter { new_id: || "id".to_owned(), ..Splitter::new(Stream::Stdout) }
    }

    fn texts(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect()
    }

    #[test]
    fn an_unfinished_line_waits_for_its_end() {
        let mut splitter = splitter();
        let (lines, taken) = splitter.split(b"one\n\ntw", false, AT);
        assert_eq!((texts(&lines), taken), (vec!["one".to_owned(), String::new()], 5));
        assert_eq!(splitter.split(b"tw", false, AT), (Vec::new(), 0));
        let (lines, taken) = splitter.split(b"two\n", false, AT);
        assert_eq!((texts(&lines), taken), (vec!["two".to_owned()], 4));
        assert_eq!(lines[0].part, None);
    }

    #[test]
    fn a_last_line_without_its_end_is_sent() {
        let (lines, taken) = splitter().split(b"one\ntwo", true, AT);
        assert_eq!((texts(&lines), taken), (vec!["one".to_owned(), "two".to_owned()], 7));
        assert_eq!(splitter().split(b"", true, AT), (Vec::new(), 0));
    }

    #[test]
    fn a_long_line_is_split_into_numbered_parts() {
        let mut text = vec![b'x'; 2 * MAX_LINE_BYTES + 3];
        text.push(b'\n');
        let (lines, taken) = splitter().split(&text, false, AT);
        assert_eq!(taken, text.len());
        let parts: Vec<_> = lines.iter().map(|line| line.part.clone().unwrap()).collect();
        let numbers: Vec<_> = parts.iter().map(|part| (part.ordinal, part.is_last)).collect();
        assert_eq!(numbers, [(1, false), (2, false), (3, true)]);
        assert_eq!(lines[2].text, b"xxx");
        let (whole, _) = splitter().split(&[vec![b'x'; MAX_LINE_BYTES], b"\n".to_vec()].concat(), false, AT);
        assert_eq!((whole.len(), &whole[0].part), (1, &None), "the longest whole line");
    }

    #[test]
    fn few_lines_are_taken_at_once() {
        let text = "\n".repeat(3 * MAX_LINES);
        let (lines, taken) = splitter().split(text.as_bytes(), true, AT);
        assert_eq!((lines.len(), taken), (MAX_LINES, MAX_LINES));
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_wherever_output_is_cut(
            text in "[ab\n]{0,200}",
            cuts in prop::collection::vec(1..20_usize, 1..40),
        ) {
            let (mut splitter, mut all, mut from, mut seen) = (splitter(), Vec::new(), 0, 0);
            for cut in cuts {
                seen = (seen + cut).min(text.len());
                let (lines, taken) = splitter.split(&text.as_bytes()[from..seen], false, AT);
                from += taken;
                all.extend(texts(&lines));
            }
            all.extend(texts(&splitter.split(&text.as_bytes()[from..], true, AT).0));
            let mut expected: Vec<_> = text.split('\n').map(str::to_owned).collect();
            if expected.last().is_some_and(String::is_empty) {
                expected.pop();
            }
            prop_assert_eq!(all, expected);
        }
    }
}
