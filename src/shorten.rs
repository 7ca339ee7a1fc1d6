//! Shortens texts of others that go into the plugin's messages: output of a shim, a runtime, a CNI plugin, a registry
//! or a helper may have megabytes, such as the trace of a crashed program.
//!
//! Texts are shortened where they leave the plugin: statuses and answers (`driver/reply.rs`, `driver/fingerprint.rs`),
//! task events (`task/events.rs`) and log lines (`log.rs`).

/// Maximum length of a text, in bytes.
pub(crate) const LIMIT_BYTES: usize = 4096;
/// Length of the part that is the text's end, where programs say what failed last.
const END_BYTES: usize = 1024;

/// Removes the middle of a text that is too long, and says how many bytes that was.
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
