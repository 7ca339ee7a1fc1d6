//! The known answer times of the stub's calls, which of its calls fail, and a precise timer to keep to them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::call::Call;

const MS: Duration = Duration::from_millis(1);
/// Time from the request (for a wait: from the exit of the process) to the answer, in milliseconds. Calls that start a
/// process have more time than that takes.
pub(crate) const DELAYS: [(Call, u32); 14] = [
    (Call::Create, 30),
    (Call::Start, 10),
    (Call::State, 1),
    (Call::Connect, 2),
    (Call::Pids, 5),
    (Call::Stats, 10),
    (Call::ExecSetUp, 3),
    (Call::ExecStart, 20),
    (Call::Kill, 4),
    (Call::Resize, 2),
    (Call::Update, 4),
    (Call::Wait, 5),
    (Call::Delete, 5),
    (Call::Shutdown, 1),
];
const DELAY: &str = "CONFORMANCE_STUB_DELAY";
const SLOWDOWN: &str = "CONFORMANCE_STUB_SLOWDOWN";
const FAIL: &str = "CONFORMANCE_STUB_FAIL";
/// Maximum delay of a thread's wake-up on a machine that isn't busy. The last part of a wait, this long, is a busy
/// loop.
const WATCHED: Duration = Duration::from_micros(300);

/// The configuration of a stub: delays, slowdown factors and failures by call.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answers {
    delay: BTreeMap<String, humantime::Duration>,
    slowdown: BTreeMap<String, f64>,
    fail: BTreeMap<String, u32>,
}

impl Answers {
    /// # Errors
    /// Names the environment variable, and the part of it that can't be parsed.
    pub(crate) fn of_environment() -> Result<Self> {
        let of = |name| std::env::var(name).unwrap_or_default();
        Self::of(&of(DELAY), &of(SLOWDOWN), &of(FAIL))
    }

    /// # Errors
    /// Fails as [`Self::of_environment`] does.
    pub(crate) fn of(delay: &str, slowdown: &str, fail: &str) -> Result<Self> {
        let delay = parse(delay).context(DELAY)?;
        let slowdown: BTreeMap<_, f64> = parse(slowdown).context(SLOWDOWN)?;
        let fail: BTreeMap<_, u32> = parse(fail).context(FAIL)?;
        let is_factor = |factor: &f64| (0.01..=1000.0).contains(factor);
        ensure!(slowdown.values().all(is_factor), "{SLOWDOWN}: a factor is from 0.01 to 1000");
        ensure!(!fail.values().any(|each| *each == 0), "{FAIL}: 1 fails each call, 2 every other");
        Ok(Self { delay, slowdown, fail })
    }

    /// Returns the configuration as environment variables.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, String)> {
        let delay = self.delay.iter().map(|(call, delay)| (call, delay.to_string().replace(' ', "")));
        let all =
            [(DELAY, words(delay)), (SLOWDOWN, words(self.slowdown.iter())), (FAIL, words(self.fail.iter()))];
        all.into_iter().filter(|(_, words)| !words.is_empty())
    }

    /// Returns the time after which a call is answered.
    pub(crate) fn delay(&self, call: Call) -> Duration {
        let name = call.name();
        let usual =
            DELAYS.iter().find(|(known, _)| *known == call).map_or(Duration::ZERO, |(_, ms)| *ms * MS);
        let delay = self.delay.get(&name).map_or(usual, |delay| **delay);
        delay.mul_f64(self.slowdown.get(&name).copied().unwrap_or(1.0))
    }

    /// Returns whether the `number`th call of its kind fails, counted from 1.
    pub(crate) fn fails(&self, call: Call, number: u32) -> bool {
        self.fail.get(&call.name()).is_some_and(|each| number.is_multiple_of(*each))
    }
}

fn words<T: Display>(all: impl Iterator<Item = (impl Display, T)>) -> String {
    all.map(|(call, value)| format!("{call}={value}")).collect::<Vec<_>>().join(",")
}

fn parse<T: FromStr>(text: &str) -> Result<BTreeMap<String, T>> {
    let mut all = BTreeMap::new();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let (call, value) = word.split_once('=').with_context(|| format!("{word:?} is not CALL=VALUE"))?;
        let known = DELAYS.map(|(call, _)| call.name());
        if !known.iter().any(|known| known == call) {
            bail!("{call:?} is no call of the stub's; those are {}", known.join(", "));
        }
        let value = value.parse().ok().with_context(|| format!("{value:?} is no value for {call}"))?;
        all.insert(call.to_owned(), value);
    }
    Ok(all)
}

/// Waits until `moment`, with a precision of microseconds: timers of the async runtime have a resolution of a
/// millisecond, and a sleeping thread wakes up late by its timer slack.
pub(crate) async fn until(moment: Instant) {
    let waited = tokio::task::spawn_blocking(move || {
        let rest = moment.saturating_duration_since(Instant::now());
        std::thread::sleep(rest.saturating_sub(WATCHED));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
    });
    // The wait ends early only if the process ends.
    let _ = waited.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_known_and_can_be_changed_for_one_call() {
        let answers = Answers::of("pids=7500us", "stats=1.2,pids=2", "kill=3").unwrap();
        assert_eq!(answers.delay(Call::Stats), 12 * MS);
        assert_eq!(answers.delay(Call::State), MS);
        assert_eq!(answers.delay(Call::Pids), 15 * MS);
        let kills: Vec<u32> = (1..=7).filter(|number| answers.fails(Call::Kill, *number)).collect();
        assert_eq!(kills, [3, 6]);
        assert!(!answers.fails(Call::Stats, 3));
    }

    #[test]
    fn what_is_written_down_is_read_as_the_same() {
        let answers = Answers::of("pids=7500us,create=1s", "stats=1.01", "kill=3").unwrap();
        let variables: BTreeMap<_, _> = answers.variables().collect();
        let of = |name: &str| variables.get(name).map(String::as_str).unwrap_or_default();
        assert_eq!(Answers::of(of(DELAY), of(SLOWDOWN), of(FAIL)).unwrap(), answers);
        assert!(
            variables
                .values()
                .all(|words| words.chars().all(|c| c.is_ascii_alphanumeric() || "=.,-".contains(c)))
        );
        assert_eq!(Answers::default().variables().count(), 0);
    }

    #[test]
    fn a_word_that_says_nothing_is_refused() {
        for (delay, slowdown, fail) in [
            ("stats", "", ""),
            ("stats=fast", "", ""),
            ("", "bootstrap=2", ""),
            ("", "stats=0", ""),
            ("", "", "kill=0"),
        ] {
            assert!(Answers::of(delay, slowdown, fail).is_err(), "{delay:?} {slowdown:?} {fail:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_never_early() {
        let begun = Instant::now();
        until(begun + 3 * MS).await;
        assert!(begun.elapsed() >= 3 * MS);
    }
}
