//! The type of a case, and the way in which a case reports that it can't be tried here. Knows nothing of the cases
//! there are.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Error, Result};
use futures::future::LocalBoxFuture;
use harness::context::CaseContext;
use harness::host::Plugin;
use libtest_mimic::{Completion, Conclusion};

/// Default timeout of a case.
pub const CASE_LIMIT: Duration = Duration::from_secs(100);

/// A behaviour of the driver, named by a sentence.
pub struct Case {
    pub name: String,
    pub body: Body,
    /// Timeout, after which the case has failed.
    pub limit: Duration,
}

type Body = Box<dyn Fn(Arc<CaseContext>) -> LocalBoxFuture<'static, Result<()>> + Send + Sync>;

/// The function of a case. Its arguments say what it is given: the context alone, or also the usual plugin
/// ([`CaseContext::plugin`]), which is started before it and shut down after it.
pub trait CaseFunction<Arguments> {
    async fn run(&self, context: &CaseContext) -> Result<()>;
}

impl<F: AsyncFn(&CaseContext) -> Result<()>> CaseFunction<(CaseContext,)> for F {
    async fn run(&self, context: &CaseContext) -> Result<()> {
        self(context).await
    }
}

impl<F: AsyncFn(&CaseContext, &Plugin) -> Result<()>> CaseFunction<(CaseContext, Plugin)> for F {
    async fn run(&self, context: &CaseContext) -> Result<()> {
        let mut plugin = context.plugin().await?;
        match self(context, &plugin).await {
            Err(failure) if !failure.is::<Skipped>() => Err(failure),
            passed_or_skipped => plugin.shut_down().await.and(passed_or_skipped),
        }
    }
}

/// Returns the body of a case that is written as this function.
pub fn body<Arguments>(function: impl CaseFunction<Arguments> + Copy + Send + Sync + 'static) -> Body {
    Box::new(move |context| Box::pin(async move { function.run(&context).await }))
}

/// Returns whether a case is to run: its name contains one of `filters`, or there are none. An underscore matches a
/// space, so that a case can be selected by the name of its function.
pub fn is_selected(name: &str, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| contains(name, filter))
}

/// Returns the first of `filters` that selects no case: it has a typing error, or the case has been renamed.
pub fn unmatched_filter<'a>(names: &[&str], filters: &'a [String]) -> Option<&'a String> {
    filters.iter().find(|filter| !names.iter().any(|name| contains(name, filter)))
}

fn contains(name: &str, filter: &str) -> bool {
    name.replace('_', " ").contains(&filter.replace('_', " "))
}

/// The reason why a case could not be tried.
#[derive(Debug)]
struct Skipped(String);

impl fmt::Display for Skipped {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "can't be tried here: {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// Ends a case that can't be tried with the programs at hand or on this machine.
///
/// # Errors
/// Always fails, with the reason. The case counts as skipped, not as failed.
pub fn skip<T>(why: impl Into<String>) -> Result<T> {
    Err(Skipped(why.into()).into())
}

/// The cases that could not be tried, for the summary.
#[derive(Debug, Default)]
pub struct Skips(Mutex<Vec<(String, String)>>);

impl Skips {
    /// Classifies the end of a case: passed, skipped, or failed.
    ///
    /// # Errors
    /// Carries the failure.
    pub fn sort(&self, name: &str, ended: Result<()>) -> Result<Completion> {
        match ended.map_err(Error::downcast::<Skipped>) {
            Ok(()) => Ok(Completion::Completed),
            Err(Ok(Skipped(why))) => {
                self.note(name, &why);
                Ok(Completion::ignored_with(why))
            }
            Err(Err(failure)) => Err(failure),
        }
    }

    /// Notes a case that is skipped before its start.
    pub fn note(&self, name: &str, why: &str) {
        self.list().push((name.to_owned(), why.to_owned()));
    }

    fn list(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints, at the end of a run, the skipped cases with their reasons, and the numbers of passed, failed and
    /// skipped ones.
    pub fn summarize(&self, what: &str, conclusion: &Conclusion) {
        let mut list = self.list();
        list.sort();
        for (name, why) in list.iter() {
            println!("skipped {name}: {why}");
        }
        let (passed, failed) = (conclusion.num_passed, conclusion.num_failed);
        println!("{what}: {passed} passed, {failed} failed, {} skipped", list.len());
    }
}

#[cfg(test)]
mod tests {
    use super::{is_selected, unmatched_filter};

    const IN_SUITE: &str = "stop: a task that heeds its signal is gone at once";
    const IN_E2E: &str = "stop::a_task_that_ends_at_once_stops_at_once";

    fn filters(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn filters_take_function_names_and_words_alike() {
        for filter in ["a_task_that_heeds", "a task that heeds", "a task_that heeds", "stop:"] {
            assert!(is_selected(IN_SUITE, &filters(&[filter])), "{filter}");
        }
        for filter in ["a_task_that_ends_at_once", "a task that ends at once", "stop::"] {
            assert!(is_selected(IN_E2E, &filters(&[filter])), "{filter}");
        }
        assert!(!is_selected(IN_SUITE, &filters(&["a_task_that_ignores", "exec:"])));
        assert!(is_selected(IN_SUITE, &filters(&["exec:", "heeds"])));
        assert!(is_selected(IN_SUITE, &[]));
    }

    #[test]
    fn filters_that_select_nothing_are_found() {
        let given = filters(&["a_task_that", "heads its signal"]);
        assert_eq!(unmatched_filter(&[IN_SUITE, IN_E2E], &given), given.get(1));
        assert_eq!(unmatched_filter(&[IN_SUITE, IN_E2E], &given[..1]), None);
    }
}
