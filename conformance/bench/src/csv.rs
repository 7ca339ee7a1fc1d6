//! A report's samples as CSV for other tools: one row for each call, failed ones included.
//!
//! Source of the facts: RFC 4180.

use std::io::{self, Write};

use super::report_data::{Key, Report};

const HEAD: &str = "setup,path,call,concurrency,payload_bytes,held,nanoseconds,failed_in_turn,error";

/// # Errors
/// Fails if `out` can't be written.
pub(crate) fn write(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{HEAD}")?;
    for series in &report.series {
        let key = words(&series.key);
        for sample in &series.samples_ns {
            writeln!(out, "{key},{sample},,")?;
        }
        for failure in &series.failures {
            writeln!(out, "{key},,{},{}", failure.turn, quoted(&failure.error))?;
        }
    }
    Ok(())
}

fn words(key: &Key) -> String {
    let Key { setup, path, call, concurrency, payload_bytes, held } = key;
    let (setup, path, call) = (quoted(setup), quoted(path), quoted(call));
    format!("{setup},{path},{call},{concurrency},{payload_bytes},{held}")
}

fn quoted(field: &str) -> String {
    if field.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_with_commas_or_quotes_stays_one_field() {
        assert_eq!(quoted("direct"), "direct");
        assert_eq!(quoted("1.6, runc"), "\"1.6, runc\"");
        assert_eq!(quoted("no such \"file\""), "\"no such \"\"file\"\"\"");
    }
}
