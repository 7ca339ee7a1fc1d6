//! The calls that can be measured, and the steps whose times they are: one step may yield several calls. Knows nothing
//! of how a path makes them.

use std::fmt;

use clap::ValueEnum;

/// A call that is measured, by whatever path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Call {
    /// The shim's `start`, until a connection to the shim is open.
    Bootstrap,
    /// Creation of the container, without the start of its process.
    Create,
    /// Start of the container's process.
    Start,
    /// Query for the state of a running container.
    State,
    /// Query for the pids of the shim and of the container's process.
    Connect,
    /// List of the container's processes.
    Pids,
    /// One sample of the container's resource usage.
    Stats,
    /// Declaration of an exec, without its start.
    ExecSetUp,
    /// Start of the declared exec.
    ExecStart,
    /// Time from the request of an exec to the first byte of its output.
    ExecFirstByte,
    /// Time from the request of an exec to the answer that its process has exited.
    ExecExit,
    /// Time from the request of an exec until all of its output is read and nothing of the exec is left.
    Exec,
    /// A whole exec in a single call, which returns the output as well.
    ExecUnary,
    /// A signal that the process ignores (SIGWINCH).
    Kill,
    /// Change of a terminal's size.
    Resize,
    /// Change of the container's CPU weight.
    Update,
    /// Time from the exit of the process, as seen by a pidfd, to the answer of the pending wait.
    Wait,
    /// Removal of the exited container.
    Delete,
    /// Shutdown of the shim.
    Shutdown,
    /// Time from the request to start a task, with its image present, to the first write of the task's process.
    TaskStart,
    /// Time from the request to remove a running task until nothing of the task is left.
    TaskRemoval,
}

/// An operation that is made and timed at once. Its time, or the times of its parts, are those of one or more calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
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
    /// An exec that reads this many bytes from its stdin and writes them back to its stdout.
    Exec(usize),
    ExecUnary,
    /// The start of a new task, and its removal.
    Task,
}

/// The container that a step is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// A container that goes through its life cycle once, one step after the other.
    Fresh,
    /// A container that keeps running between the steps.
    Running,
    Nothing,
}

impl Call {
    /// Returns the call's name in series and options, such as `exec-set-up`.
    pub(crate) fn name(self) -> String {
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
    pub(crate) fn on(self) -> ContainerState {
        match self {
            Self::Bootstrap | Self::Create | Self::Start | Self::End | Self::Delete | Self::Shutdown => {
                ContainerState::Fresh
            }
            Self::Task => ContainerState::Nothing,
            _ => ContainerState::Running,
        }
    }

    /// Returns the calls whose times this step yields. The one that comprises the whole step is last.
    pub(crate) fn gives(self) -> Vec<Call> {
        Call::value_variants().iter().copied().filter(|call| call.step(self.payload()) == self).collect()
    }

    /// Returns the call that the CPU time of this step is attributed to.
    pub(crate) fn whole(self) -> Option<Call> {
        match self {
            // Not used: the CPU time of a task's start and that of its removal are charged separately where the step
            // is made.
            Self::Task => Some(Call::TaskStart),
            _ => self.gives().last().copied(),
        }
    }

    pub(crate) fn payload(self) -> usize {
        match self {
            Self::Exec(bytes) => bytes,
            _ => 0,
        }
    }
}

/// Returns the steps that the wanted calls need, in the order in which an iteration makes them. All steps of a
/// container's life cycle are included if any of them is needed.
pub(crate) fn steps(wanted: &[Call], payloads: &[usize]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for call in Call::value_variants() {
        let is_wanted = wanted.contains(call);
        for payload in payloads {
            let step = call.step(*payload);
            let of_a_life = step.on() == ContainerState::Fresh
                && wanted.iter().any(|call| call.step(0).on() == ContainerState::Fresh);
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
