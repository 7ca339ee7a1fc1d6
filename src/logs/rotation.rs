//! Rotation rules of log files: which file of a series is written, how much goes into it, and which files are removed.
//! Pure decisions, by Nomad's own rules, so that readers of the files see no difference.
//!
//! Source of the facts: hashicorp/nomad `client/logmon/logging/rotator.go` (1.11.3).

use super::Limits;

/// Maximum length of a line that is kept whole at the end of a file, in bytes.
pub(super) const MAX_WHOLE_LINE_BYTES: u64 = 32 << 10;
/// Maximum index of a file, which no series reaches by writing. A higher one is not the driver's, and would leave no
/// number to continue with.
const MAX_INDEX: u64 = 1 << 40;

/// The log files of one stream of a task, `<task>.<stream>.<n>`.
#[derive(Debug, Clone)]
pub(super) struct Series {
    prefix: String,
}

impl Series {
    pub(super) fn of(task: &str, stream: &str) -> Self {
        Self { prefix: format!("{task}.{stream}.") }
    }

    pub(super) fn name(&self, index: u64) -> String {
        format!("{}{index}", self.prefix)
    }

    /// Parses the index from the name of a file of this series. A number in any other notation, such as `01`, is no
    /// name of the series.
    pub(super) fn index(&self, name: &str) -> Option<u64> {
        let number = name.strip_prefix(&self.prefix)?;
        let index = number.parse().ok().filter(|index| *index <= MAX_INDEX)?;
        (self.name(index) == name).then_some(index)
    }
}

/// Room that is left in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Plenty: up to this many bytes may be written, wherever lines end.
    Plenty(u64),
    /// Little: this many bytes; how many are written depends on where lines end.
    Little(u64),
}

pub(super) fn room(limits: &Limits, size_bytes: u64) -> Room {
    let left = limits.max_file_bytes.saturating_sub(size_bytes);
    match left.checked_sub(MAX_WHOLE_LINE_BYTES) {
        Some(plenty @ 1..) => Room::Plenty(plenty),
        _ => Room::Little(left),
    }
}

/// Next action when a file has little room left.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write this many bytes to the file.
    Move(u64),
    /// Begin the next file.
    Rotate,
}

/// Decides for `head`, the output that waits. Lines go into the file as long as whole ones fit. The rest begins the
/// next file, unless files are at most [`MAX_WHOLE_LINE_BYTES`] large: then a part of a line is written.
pub(super) fn step(limits: &Limits, left_bytes: u64, head: &[u8]) -> Step {
    let left = usize::try_from(left_bytes).unwrap_or(usize::MAX).min(head.len());
    let fits = &head[..left];
    match fits.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => Step::Move(end as u64 + 1),
        None if left > 0 && limits.max_file_bytes <= MAX_WHOLE_LINE_BYTES => Step::Move(left as u64),
        None => Step::Rotate,
    }
}

/// Returns the indexes of the oldest files beyond the maximum number.
pub(super) fn outdated(limits: &Limits, mut indexes: Vec<u64>) -> Vec<u64> {
    indexes.sort_unstable();
    indexes.truncate(indexes.len().saturating_sub(limits.max_files));
    indexes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { max_files: 3, max_file_bytes: 64 << 10 };

    #[test]
    fn an_index_is_parsed_from_the_names_of_a_series() {
        let series = Series::of("web", "stdout");
        assert_eq!(series.name(12), "web.stdout.12");
        assert_eq!(series.index("web.stdout.12"), Some(12));
        for other in [
            "web.stderr.1",
            "web.stdout.",
            "web.stdout.01",
            "web.stdout.+1",
            "web.stdout.-1",
            "web.stdout.1.gz",
            "web.stdout.18446744073709551615",
            ".web.stdout.fifo",
            "aweb.stdout.1",
        ] {
            assert_eq!(series.index(other), None, "{other}");
        }
    }

    #[test]
    fn a_file_with_plenty_of_room_takes_any_bytes() {
        assert_eq!(room(&LIMITS, 0), Room::Plenty(32 << 10));
        assert_eq!(room(&LIMITS, (32 << 10) - 1), Room::Plenty(1));
        assert_eq!(room(&LIMITS, 32 << 10), Room::Little(32 << 10));
        assert_eq!(room(&LIMITS, 64 << 10), Room::Little(0));
        assert_eq!(room(&LIMITS, 1 << 30), Room::Little(0));
    }

    #[test]
    fn a_file_with_little_room_takes_whole_lines() {
        assert_eq!(step(&LIMITS, 8, b"one\ntwo\n"), Step::Move(8));
        assert_eq!(step(&LIMITS, 7, b"one\ntwo\n"), Step::Move(4));
        assert_eq!(step(&LIMITS, 100, b"one\ntw"), Step::Move(4));
        assert_eq!(step(&LIMITS, 100, b"tw"), Step::Rotate);
        assert_eq!(step(&LIMITS, 3, b"one\n"), Step::Rotate);
        assert_eq!(step(&LIMITS, 0, b"\n"), Step::Rotate);
    }

    #[test]
    fn a_line_that_no_file_can_hold_is_split() {
        let small = Limits { max_files: 3, max_file_bytes: 5 };
        assert_eq!(step(&small, 5, b"longer"), Step::Move(5));
        assert_eq!(step(&small, 0, b"r"), Step::Rotate);
    }

    #[test]
    fn the_oldest_files_beyond_the_limit_are_outdated() {
        assert_eq!(outdated(&LIMITS, vec![10, 9, 11, 2]), [2]);
        assert_eq!(outdated(&LIMITS, vec![1, 0]), [0_u64; 0]);
        assert_eq!(outdated(&Limits { max_files: 1, ..LIMITS }, vec![0, 1, 2]), [0, 1]);
    }

    proptest! {
        #[test]
        fn no_file_exceeds_the_limit(
            lengths in prop::collection::vec(1..50_000_usize, 1..12), max_file_bytes in prop_oneof![1..=MAX_WHOLE_LINE_BYTES, 2 * MAX_WHOLE_LINE_BYTES..100_000],
        ) {
            let limits = Limits { max_files: 3, max_file_bytes };
            let text: Vec<u8> = lengths.iter().flat_map(|length| {
                std::iter::repeat_n(b'x', length - 1).chain([b'\n'])
            }).collect();
            let (mut rest, mut size, mut rotations) = (&text[..], 0, 0);
            while !rest.is_empty() {
                let moved = match room(&limits, size) {
                    Room::Plenty(bytes) => bytes.min(rest.len() as u64),
                    Room::Little(left) => match step(&limits, left, &rest[..rest.len().min(1 << 15)]) {
                        Step::Move(bytes) => bytes,
                        Step::Rotate => {
                            prop_assert!(size > 0, "an empty file is left behind");
                            size = 0;
                            rotations += 1;
                            continue;
                        }
                    },
                };
                prop_assert!(moved > 0);
                size += moved;
                prop_assert!(size <= max_file_bytes);
                rest = &rest[usize::try_from(moved).unwrap()..];
            }
            // A line that is too long to be kept whole leaves a file half empty at worst.
            prop_assert!(rotations <= 2 * text.len() as u64 / max_file_bytes + lengths.len() as u64);
        }
    }
}
