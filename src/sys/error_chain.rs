//! Printing of an error with its sources. An error's own text says only its part; here is the one place that puts the
//! parts together for an operator. Knows no error by name.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::iter;

/// An error and its sources, printed as `error: source: source`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorChain<'a>(&'a (dyn Error + 'static));

/// An error that can be printed with its sources.
pub(crate) trait Chained {
    /// Returns the error with its sources, to be printed.
    fn chain(&self) -> ErrorChain<'_>;
}

impl<E: Error + 'static> Chained for E {
    fn chain(&self) -> ErrorChain<'_> {
        ErrorChain(self)
    }
}

impl Chained for dyn Error + 'static {
    fn chain(&self) -> ErrorChain<'_> {
        ErrorChain(self)
    }
}

impl Display for ErrorChain<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let mut before = self.0.to_string();
        formatter.write_str(&before)?;
        for source in iter::successors(self.0.source(), |&error| error.source()) {
            let part = format!(": {source}");
            // Some errors of other crates name their source in their own text, and return it as well.
            if !before.ends_with(&part) {
                formatter.write_str(&part)?;
            }
            before = part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<dyn Error + Send + Sync>>,
    }

    fn layer(text: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Layer {
        Layer { text, source: Some(source.into()) }
    }

    #[test]
    fn each_source_is_printed_once_and_in_order() {
        let of_kernel = || io::Error::from_raw_os_error(2);
        let alone = Layer { text: "alone", source: None };
        assert_eq!(alone.chain().to_string(), "alone");
        let error = layer("start task x", layer("open /x", of_kernel()));
        assert_eq!(
            error.chain().to_string(),
            "start task x: open /x: No such file or directory (os error 2)"
        );
        let unsized_error: &(dyn Error + 'static) = &error;
        assert_eq!(unsized_error.chain().to_string(), error.chain().to_string());
    }

    #[test]
    fn an_io_error_around_another_error_is_printed_with_its_sources() {
        let error = io::Error::other(layer("open /x", layer("denied", "by a rule")));
        assert_eq!(error.chain().to_string(), "open /x: denied: by a rule");
    }

    #[test]
    fn a_source_that_its_error_names_itself_is_not_printed_again() {
        let error = layer("decode", layer("reading failed: end of file", layer("end of file", "at 7")));
        assert_eq!(error.chain().to_string(), "decode: reading failed: end of file: at 7");
        let empty = layer("refused", "");
        assert_eq!(empty.chain().to_string(), "refused: ");
    }
}
