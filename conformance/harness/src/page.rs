//! Tables that a run writes into a page of the documentation.

use std::path::Path;

use anyhow::{Context, Result};

/// Puts a table in the place of that of a program in a page, between two lines that name it.
///
/// # Errors
/// Fails if the page has no place for it.
pub fn write_into(page: &Path, program: &str, table: &str) -> Result<()> {
    let begin = format!("<!-- {program} writes this table -->\n");
    let end = format!("<!-- the end of {program}'s table -->\n");
    let context = || format!("the page {}", page.display());
    let text = std::fs::read_to_string(page).with_context(context)?;
    let (before, rest) =
        text.split_once(&begin).context("it has no place for the table").with_context(context)?;
    let (_, after) = rest.split_once(&end).context("its table has no end").with_context(context)?;
    std::fs::write(page, format!("{before}{begin}\n{table}\n{end}{after}")).with_context(context)
}
