//! The names of signals, as `kill -l`, docker and Nomad write them.

use std::str::FromStr;

use nix::sys::signal::Signal;

use super::error::{Error, Result};

const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Returns the number of a signal given as `SIGTERM`, `term`, `15`, `SIGRTMIN+3`.
///
/// # Errors
/// Lists the signals that there are.
pub(super) fn parse(text: &str) -> Result<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return if (1..=SIGRTMAX).contains(&number) { Ok(number) } else { Err(unknown(text)) };
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = realtime(name)
        .or_else(|| Signal::from_str(&format!("SIG{}", usual(name))).ok().map(|signal| signal as i32));
    number.ok_or_else(|| unknown(text))
}

/// Returns whether this is `SIGNULL`, the name for no signal at all in Nomad's list of signals.
pub(super) fn is_none(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case("SIGNULL")
}

/// Returns the usual name of a signal that has a second one.
fn usual(name: &str) -> &str {
    match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        "UNUSED" => "SYS",
        _ => name,
    }
}

fn realtime(name: &str) -> Option<i32> {
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        SIGRTMIN + if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<u8>().ok()?.into() }
    } else {
        let offset = name.strip_prefix("RTMAX")?;
        SIGRTMAX
            - if offset.is_empty() { 0 } else { i32::from(offset.strip_prefix('-')?.parse::<u8>().ok()?) }
    };
    (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
}

fn unknown(text: &str) -> Error {
    let names: Vec<_> = Signal::iterator().map(Signal::as_str).collect();
    let names = names.join(", ");
    Error::invalid(format!(
        "unknown signal {text:?}; known are {names}, SIGRTMIN+n, SIGRTMAX-n and their numbers"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_signals() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("sigterm", 15),
            ("TERM", 15),
            ("9", 9),
            ("SIGUSR1", 10),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("SIGRTMAX-1", 63),
            ("SIGPOLL", 29),
            ("IOT", 6),
            ("SIGCLD", 17),
            ("SIGSTKFLT", 16),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
    }

    #[test]
    fn no_signal_has_a_name_of_its_own() {
        assert!(is_none("SIGNULL") && is_none(" signull"));
        assert!(!is_none("") && !is_none("SIGTERM") && parse("SIGNULL").is_err());
    }

    #[test]
    fn unknown_signals_are_refused_with_the_list() {
        for text in ["", "SIG", "SIGNOPE", "0", "65", "-9", "SIGRTMIN+31", "SIGRTMIN-1", "SIGRTMIN+"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("SIGTERM"), "{text}: {error}");
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn names() {
        crate::fuzz::text("signal", |text| {
            let Ok(number) = parse(text) else { return };
            assert!((1..=SIGRTMAX).contains(&number), "{number}");
            assert_eq!(parse(&number.to_string()).unwrap(), number);
        });
    }
}
