//! Timestamps in labels: RFC 3339, which the daemon reads as well.

use std::time::SystemTime;

pub(super) fn time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

pub(super) fn text(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timestamps_round_trip() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        assert_eq!(time(&text(now)), Some(now));
        assert_eq!((time(""), time("soon")), (None, None));
    }
}
