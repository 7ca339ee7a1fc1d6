//! Points of a plugin's work at which a fault can be injected, and the faults.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use clap::ValueEnum as _;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::outside::Outside;
use super::scenario::Scenario;
use super::system_calls::{self, Failures};

/// A system call of the plugin: its name, what it acts on, and which such call on that object it is. Threads run in
/// varying order, so the number of a call among all calls would not find it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Point {
    pub call: String,
    pub object: String,
    /// 1 for the first call of this name on the object.
    pub ordinal: u32,
}

impl fmt::Display for Point {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} {} #{}", self.call, self.object, self.ordinal)
    }
}

/// What is done at the point that was asked for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Action {
    Kill,
    KillAfter,
    /// Stands still for as many seconds.
    Freeze(u64),
    /// Each call on the same file system stands still until as many seconds are over.
    Hang(u64),
    /// The error's number.
    Fail(i32),
    Shorten,
    /// Holds the plugin until it is released.
    Hold,
}

/// A fault at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The plugin is killed before the call.
    Kill,
    /// The plugin is killed right after the call.
    KillAfter,
    /// The whole plugin stands still for two seconds before the call.
    Freeze,
    /// The whole plugin stands still for half a minute before the call.
    LongFreeze,
    /// The file system that the call acts on answers nobody for some seconds.
    Hang,
    /// The call fails with this error instead of being made.
    Error(Errno),
    /// The call transfers half of the bytes at most.
    Short,
    /// Something outside of the plugin fails, from before the call on.
    Outside(Outside),
}

impl Fault {
    /// Returns what the injector does at the point.
    pub fn action(self) -> Action {
        match self {
            Self::Kill => Action::Kill,
            Self::KillAfter => Action::KillAfter,
            Self::Freeze | Self::LongFreeze => Action::Freeze(self.frozen_for().as_secs()),
            Self::Hang => Action::Hang(HANG.as_secs()),
            Self::Error(errno) => Action::Fail(errno as i32),
            Self::Short => Action::Shorten,
            Self::Outside(_) => Action::Hold,
        }
    }

    /// Returns the time for which the plugin itself can't answer.
    pub fn frozen_for(self) -> Duration {
        match self {
            Self::Freeze => Duration::from_secs(2),
            Self::LongFreeze => Duration::from_secs(30),
            _ => Duration::ZERO,
        }
    }

    /// Returns the fault outside of the plugin, if it is one.
    pub fn outside(self) -> Option<Outside> {
        match self {
            Self::Outside(outside) => Some(outside),
            _ => None,
        }
    }

    /// Returns whether the plugin ends by the fault.
    pub fn kills_plugin(self) -> bool {
        matches!(self, Self::Kill | Self::KillAfter)
    }

    /// Returns whether the same work would succeed a moment later, so that its error has to be a transient one.
    pub fn passes_by_itself(self) -> bool {
        match self {
            Self::Error(errno) => !matches!(errno, Errno::EIO | Errno::EACCES | Errno::EROFS),
            // An operator has to put the right one there.
            Self::Outside(Outside::ShimBroken | Outside::CniLies) => false,
            // It looks like a manifest that is too large.
            Self::Outside(Outside::RegistryEndless) => false,
            _ => true,
        }
    }
}

/// Time for which a file system hangs: longer than another task's answer may take.
const HANG: Duration = Duration::from_secs(4);

const NAMES: [(&str, Fault); 6] = [
    ("kill", Fault::Kill),
    ("kill-after", Fault::KillAfter),
    ("freeze", Fault::Freeze),
    ("long-freeze", Fault::LongFreeze),
    ("hang", Fault::Hang),
    ("short", Fault::Short),
];

impl fmt::Display for Fault {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(errno) => return write!(to, "{errno:?}"),
            Self::Outside(outside) => return outside.fmt(to),
            _ => {}
        }
        let name = NAMES.iter().find(|(_, fault)| fault == self).map_or("?", |(name, _)| name);
        to.write_str(name)
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((_, fault)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*fault);
        }
        if let Ok(outside) = Outside::from_str(text, false) {
            return Ok(Self::Outside(outside));
        }
        let errno = system_calls::ERRORS.iter().find(|errno| format!("{errno:?}") == text);
        Ok(Self::Error(*errno.with_context(|| format!("no fault is called {text:?}"))?))
    }
}

impl FromStr for Point {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((call, rest)) = text.split_once(' ') else { bail!("{text:?} is no point") };
        let (object, ordinal) = rest.rsplit_once(" #").with_context(|| format!("{text:?} has no ordinal"))?;
        Ok(Self { call: call.to_owned(), object: object.to_owned(), ordinal: ordinal.parse()? })
    }
}

/// A point with a fault: one run of the enumeration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    pub point: Point,
    pub fault: Fault,
}

impl fmt::Display for Trial {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} @ {}", self.fault, self.point)
    }
}

impl FromStr for Trial {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (fault, point) = text.split_once(" @ ").with_context(|| format!("{text:?} is no trial"))?;
        Ok(Self { point: point.parse()?, fault: fault.parse()? })
    }
}

/// Returns the faults that can be injected at a scenario's point. The end right after a call that changes nothing is the same as
/// before the next one.
pub fn faults_at(scenario: Scenario, point: &Point) -> Vec<Fault> {
    let mut faults = vec![Fault::Kill, Fault::Freeze];
    // Whoever is asked may give up waiting.
    let leaves_process =
        point.object.starts_with("socket") && ["sendmsg", "write", "connect"].contains(&&*point.call);
    faults.extend(leaves_process.then_some(Fault::LongFreeze));
    if let Some(Failures { errors, can_be_short, changes }) =
        system_calls::failures(&point.call, &point.object)
    {
        faults.extend(changes.then_some(Fault::KillAfter));
        faults.extend(errors.iter().copied().map(Fault::Error));
        faults.extend(can_be_short.then_some(Fault::Short));
    }
    faults.extend(system_calls::may_wait(&point.call, &point.object).then_some(Fault::Hang));
    let outside = Outside::value_variants().iter().copied();
    let is_possible = |outside: &Outside| outside.is_possible_at(scenario, &point.call, &point.object);
    faults.extend(outside.filter(is_possible).map(Fault::Outside));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_read_as_it_is_written() {
        for text in [
            "kill @ openat {state}/nomad/{task}/config.json #2",
            "ENOSPC @ write {state}/nomad/a file #1",
            "long-freeze @ connect socket x #1",
            "containerd-frozen @ sendmsg socket {containerd} #17",
        ] {
            let trial: Trial = text.parse().unwrap();
            assert_eq!(trial.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_trial_is_refused() {
        for text in ["kill", "kill @ openat", "EWHAT @ openat x #1", "kill @ openat x #y"] {
            assert!(text.parse::<Trial>().is_err(), "{text}");
        }
    }
}
