//! What the kernel says of a process in `/proc/<pid>/stat`.
//!
//! Source of the facts: Linux `proc_pid_stat(5)`.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub state: char,
    pub parent: i32,
    pub session: i32,
    /// In the kernel's ticks since the machine's boot.
    pub started_ticks: u64,
    /// As of waitpid; of a process that has ended and was not waited for.
    pub exit_status: i32,
}

impl Stat {
    /// None where there is no such process.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in front of the state is in parentheses and may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        // The first of these is the third field, by the manual's count.
        let field = |number: usize| fields.get(number - 3);
        Some(Self {
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            started_ticks: field(22)?.parse().ok()?,
            exit_status: field(52)?.parse().ok()?,
        })
    }

    /// Whether it has ended, and only its parent is yet to take note.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_does_not_shift_the_fields() {
        let middle = vec!["0"; 15].join(" ");
        let rest = vec!["0"; 29].join(" ");
        let stat = Stat::parse(&format!("7 (a) R 1 b)) Z 3 4 5 {middle} 4711 {rest} 1280\n")).unwrap();
        let wanted = Stat { state: 'Z', parent: 3, session: 5, started_ticks: 4711, exit_status: 1280 };
        assert_eq!(stat, wanted);
        assert!(stat.has_ended());
        assert_eq!(Stat::parse("7 (a"), None);
    }
}
