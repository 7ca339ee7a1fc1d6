//! The calls that can be measured, and the steps that give their times: one step may give several. Knows nothing of how a
//! path makes them.

use std::fmt;

use clap::ValueEnum;

/// What is asked of a shim, by whatever path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Call {
    /// The shim's `start`, until it is connected to.
    Bootstrap,
    /// The container, up to but not including its process.
    Create,
    /// Its process.
    Start,
    /// What is known of a running container.
    State,
    /// The pids of shim and process.
    Connect,
    /// The processes of the container.
    Pids,
    /// One sample of what it uses.
    Stats,
    /// An exec is declared.
    ExecSetUp,
    /// The declared exec is started.
    ExecStart,
    /// From the exec's request to the first byte of its output.
    ExecFirstByte,
    /// From the exec's request to the answer that its process has ended.
    ExecExit,
    /// From the exec's request until all of its output is read and nothing is left of it.
    Exec,
    /// The same in one call, output and all.
    ExecUnary,
    /// A signal that the process takes no notice of.
    Kill,
    /// A terminal's size.
    Resize,
    /// Another weight of its CPU time.
    Update,
    /// From the process' end, by a pidfd, to the answer of who waits for it.
    Wait,
    /// The ended container is removed.
    Delete,
    /// The shim ends.
    Shutdown,
    /// From the wish, with the image there, to the process' first write.
    TaskStart,
    /// From the wish to end a running task until nothing is left of it.
    TaskRemoval,
}

/// What is done at a time, and measured in one or more parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Bootstrap,
    Create,
    Start,
    End,
    Delete,
    Shutdown,
    State,
    Connect,
    Pids,
    Stats,
    Kill,
    Resize,
    Update,
    /// Carries so many bytes in, and the same out again.
    Exec(usize),
    ExecUnary,
    /// A task of its own, from nothing to nothing.
    Task,
}

/// What a step is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// A container that goes through its life once, a step after the other.
    Fresh,
    /// One that runs all the time.
    Running,
    Nothing,
}

impl Call {
    /// As series name it.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn step(self, payload: usize) -> Step {
        match self {
            Self::Bootstrap => Step::Bootstrap,
            Self::Create => Step::Create,
            Self::Start => Step::Start,
            Self::State => Step::State,
            Self::Connect => Step::Connect,
            Self::Pids => Step::Pids,
            Self::Stats => Step::Stats,
            Self::ExecSetUp | Self::ExecStart | Self::ExecFirstByte | Self::ExecExit | Self::Exec => {
                Step::Exec(payload)
            }
            Self::ExecUnary => Step::ExecUnary,
            Self::Kill => Step::Kill,
            Self::Resize => Step::Resize,
            Self::Update => Step::Update,
            Self::Wait => Step::End,
            Self::Delete => Step::Delete,
            Self::Shutdown => Step::Shutdown,
            Self::TaskStart | Self::TaskRemoval => Step::Task,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Step {
    pub fn on(self) -> On {
        match self {
            Self::Bootstrap | Self::Create | Self::Start | Self::End | Self::Delete | Self::Shutdown => {
                On::Fresh
            }
            Self::Task => On::Nothing,
            _ => On::Running,
        }
    }

    /// The calls whose times it gives, the one that all of it belongs to last.
    pub fn gives(self) -> Vec<Call> {
        Call::value_variants().iter().copied().filter(|call| call.step(self.payload()) == self).collect()
    }

    /// The call that what the step costs is put down to.
    pub fn whole(self) -> Option<Call> {
        match self {
            // Its two halves can't be told apart.
            Self::Task => Some(Call::TaskStart),
            _ => self.gives().last().copied(),
        }
    }

    pub fn payload(self) -> usize {
        match self {
            Self::Exec(bytes) => bytes,
            _ => 0,
        }
    }
}

/// The steps that the wanted calls need, in the order in which a turn makes them. A container's life is whole if any part
/// of it is wanted.
pub fn steps(wanted: &[Call], payloads: &[usize]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for call in Call::value_variants() {
        let is_wanted = wanted.contains(call);
        for payload in payloads {
            let step = call.step(*payload);
            let of_a_life =
                step.on() == On::Fresh && wanted.iter().any(|call| call.step(0).on() == On::Fresh);
            if (is_wanted || of_a_life) && !steps.contains(&step) {
                steps.push(step);
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wanted_part_of_a_life_needs_all_of_it_in_order() {
        let all = [Step::Bootstrap, Step::Create, Step::Start, Step::End, Step::Delete, Step::Shutdown];
        assert_eq!(steps(&[Call::Wait], &[0]), all);
        assert_eq!(steps(&[Call::State, Call::Kill], &[0]), [Step::State, Step::Kill]);
    }

    #[test]
    fn an_exec_is_made_once_for_all_of_its_parts_and_once_a_payload() {
        let wanted = [Call::ExecFirstByte, Call::Exec, Call::ExecUnary];
        assert_eq!(steps(&wanted, &[0, 4096]), [Step::Exec(0), Step::Exec(4096), Step::ExecUnary]);
        assert_eq!(Step::Exec(4096).whole(), Some(Call::Exec));
        assert_eq!(Step::Exec(0).gives().len(), 5);
    }

    #[test]
    fn every_call_is_given_by_its_step() {
        for call in Call::value_variants() {
            assert!(call.step(7).gives().contains(call), "{call}");
        }
        assert_eq!(Call::ExecSetUp.name(), "exec-set-up");
    }
}
