//! The length of texts that others have written and that go into messages of ours: what a shim, a runtime, a CNI plugin, a
//! registry or a helper says may be megabytes, such as the trace of a crashed program.
//!
//! They are cut where they leave the plugin: statuses and answers (`driver/reply.rs`, `driver/fingerprint.rs`), task events
//! (`task/events.rs`) and log lines (`log.rs`).

/// Maximum length of a text, in bytes.
pub(crate) const LIMIT_BYTES: usize = 4096;
/// How much of it is the text's end, where programs say what they have failed at last.
const END_BYTES: usize = 1024;

/// Leaves out the middle of a text that is too long, and says how much that was.
pub(crate) fn shorten(text: String) -> String {
    if text.len() <= LIMIT_BYTES {
        return text;
    }
    let (head, rest) = text.split_at(text.floor_char_boundary(LIMIT_BYTES - END_BYTES));
    let (middle, end) = rest.split_at(rest.ceil_char_boundary(rest.len() - END_BYTES));
    format!("{head} [{} bytes left out] {end}", middle.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_beginning_and_its_end() {
        let short = "ü".repeat(LIMIT_BYTES / 2);
        assert_eq!(shorten(short.clone()), short);
        for filling in ["x", "ü", "語"] {
            let text = format!("a{}z", filling.repeat(1 << 20));
            let shown = shorten(text.clone());
            assert!(shown.len() < LIMIT_BYTES + 50 && shown.starts_with('a') && shown.ends_with('z'));
            let (head, rest) = shown.split_once(" [").unwrap();
            let (number, end) = rest.split_once(" bytes left out] ").unwrap();
            assert_eq!(head.len() + end.len() + number.parse::<usize>().unwrap(), text.len());
        }
    }
}
