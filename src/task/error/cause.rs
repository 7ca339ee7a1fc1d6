//! The causes of a call's error: texts, errors of the modules below, and what was being done.

use std::error::Error as StdError;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

/// The cause of an error of a call. Shared, since several callers may wait for one result.
pub(crate) type Cause = Arc<dyn StdError + Send + Sync>;

/// An action that failed, in front of the cause of its failure.
#[derive(Debug)]
struct Context {
    doing: String,
    cause: Cause,
}

/// Returns the cause with the action that failed in front.
pub(super) fn with_context(cause: Cause, doing: &impl Display) -> Cause {
    Arc::new(Context { doing: doing.to_string(), cause })
}

impl Display for Context {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.doing)
    }
}

impl StdError for Context {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.cause)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use shim_protos::CallError;

    use crate::devices::DevicesError;
    use crate::shim;
    use crate::sys::error_chain::Chained;
    use crate::task::Error;

    use super::*;

    fn refused() -> shim::Error {
        let source = CallError::Refused("no such file or directory".to_owned());
        shim::Error::Call { doing: "create container web".to_owned(), source }
    }

    /// Returns the first error of a type among an error and its sources.
    fn find<T: StdError + 'static>(error: &Error) -> Option<&T> {
        let first: &(dyn StdError + 'static) = error;
        std::iter::successors(Some(first), |&error| error.source()).find_map(|error| error.downcast_ref())
    }

    #[test]
    fn the_chain_of_an_error_with_context_is_printed_outermost_first() {
        let error = Error::from(refused()).context("run \"sh\"").context("start task web");
        assert_eq!(error.to_string(), "start task web");
        assert_eq!(
            error.chain().to_string(),
            "start task web: run \"sh\": create container web: no such file or directory"
        );
    }

    #[test]
    fn sources_are_reachable_behind_contexts_and_in_clones() {
        let error = Error::from(refused()).context("run \"sh\"").context("start task web");
        for error in [&error.clone(), &error] {
            assert!(matches!(find(error), Some(shim::Error::Call { .. })));
            assert!(matches!(find(error), Some(CallError::Refused(_))));
        }
        let source = io::Error::from(nix::errno::Errno::ENOENT);
        let error = Error::from(DevicesError::Io { path: "/dev/x".into(), source }).context("start task web");
        let of_kernel: Option<&io::Error> = find(&error);
        assert_eq!(of_kernel.and_then(io::Error::raw_os_error), Some(2));
    }
}
