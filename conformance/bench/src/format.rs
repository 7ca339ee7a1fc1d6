//! Formats names and figures for people, the same in all that is printed or drawn.

use super::report_data::Key;

pub(crate) const MEBIBYTE: f64 = 1_048_576.0;

/// Formats a time in milliseconds with three significant digits.
pub(crate) fn milliseconds(ns: f64) -> String {
    if ns == 0.0 {
        return "0 ms".to_owned();
    }
    let ms = ns / 1e6;
    let digits = if ms >= 99.95 {
        0
    } else if ms >= 9.995 {
        1
    } else if ms >= 0.9995 {
        2
    } else {
        3
    };
    format!("{ms:.digits$} ms")
}

/// Formats a size in the greatest unit of which there is at least one.
pub(crate) fn bytes(bytes: f64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fitting = units.into_iter().find(|(_, bits)| bytes >= f64::from(1_u32 << bits));
    let (unit, bits) = fitting.unwrap_or(("B", 0));
    let count = bytes / f64::from(1_u32 << bits);
    let digits = usize::from(bits > 0 && count < 99.95);
    format!("{count:.digits$} {unit}")
}

/// Formats a size that is given in MiB, the unit of drawings, so that their ticks are round.
pub(crate) fn mebibytes(mebibytes: f64) -> String {
    bytes(mebibytes * MEBIBYTE)
}

/// Formats a call with the conditions that it was made under, as far as they are unusual.
pub(crate) fn call(key: &Key) -> String {
    let mut name = key.call.clone();
    let mut add = |count: u64, words: &str| {
        if count > 0 {
            name += &format!(", {count} {words}");
        }
    };
    add(key.payload_bytes, "bytes");
    add(u64::from(if key.concurrency > 1 { key.concurrency } else { 0 }), "at a time");
    add(u64::from(key.held), "others running");
    name
}

/// Formats the title of a timeline, with the conditions that its calls were made under.
pub(crate) fn where_time_goes(key: &Key) -> String {
    let under = call(&Key { call: String::new(), ..key.clone() });
    format!("where a {}'s time goes on {}{under}", key.call, key.setup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_three_digits() {
        let shown = [123_456_789.0, 12_345_678.0, 9_996_000.0, 1_234_567.0, 123_456.0, 0.0].map(milliseconds);
        assert_eq!(shown, ["123 ms", "12.3 ms", "10.0 ms", "1.23 ms", "0.123 ms", "0 ms"]);
    }

    #[test]
    fn memory_is_shown_in_a_unit_that_fits() {
        let shown = [0.0, 1023.0, 1536.0, 150.0 * 1024.0, 9_437_184.0, 25e9].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "150 KiB", "9.0 MiB", "23.3 GiB"]);
    }

    #[test]
    fn a_call_is_named_with_what_is_unusual_about_it() {
        let mut key = Key {
            setup: "a".to_owned(),
            path: "direct".to_owned(),
            call: "exec".to_owned(),
            concurrency: 1,
            payload_bytes: 0,
            held: 0,
        };
        assert_eq!(call(&key), "exec");
        (key.concurrency, key.payload_bytes, key.held) = (4, 4096, 50);
        assert_eq!(call(&key), "exec, 4096 bytes, 4 at a time, 50 others running");
        let start = Key { call: "start".to_owned(), payload_bytes: 0, ..key };
        assert_eq!(where_time_goes(&start), "where a start's time goes on a, 4 at a time, 50 others running");
    }
}
