//! Renders the page's tables, and the keys of its colours.

use super::svg::escape;

/// Renders the key of a drawing's colours.
pub(crate) fn keys<'a>(keys: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let keys = keys.map(|(class, name)| format!("<span class=\"key {class}\"></span>{}", escape(name)));
    format!("<p class=\"keys\" aria-hidden=\"true\">{}</p>\n", keys.collect::<String>())
}

/// A cell of a table.
pub(crate) enum Cell {
    Word(String),
    /// A text that may be broken into lines.
    Long(String),
    Figure(String),
    /// A figure that should be zero.
    Bad(String),
}

pub(crate) fn table(caption: &str, heads: &[&str], rows: &[Vec<Cell>]) -> String {
    let is_word = |column: usize| {
        rows.first()
            .and_then(|row| row.get(column))
            .is_some_and(|cell| matches!(cell, Cell::Word(_) | Cell::Long(_)))
    };
    let heads = heads.iter().enumerate().map(|(column, head)| {
        let class = if is_word(column) { " class=\"word\"" } else { "" };
        format!("<th scope=\"col\"{class}>{}</th>", escape(head))
    });
    let heads: String = heads.collect();
    let rows: String =
        rows.iter().map(|row| format!("<tr>{}</tr>\n", row.iter().map(cell).collect::<String>())).collect();
    let caption = escape(caption);
    format!(
        "<div class=\"scroll\"><table><caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

fn cell(cell: &Cell) -> String {
    match cell {
        Cell::Word(text) => format!("<td class=\"word\">{}</td>", escape(text)),
        Cell::Long(text) => format!("<td class=\"word long\">{}</td>", escape(text)),
        Cell::Figure(text) => format!("<td>{}</td>", escape(text)),
        Cell::Bad(text) => format!("<td class=\"bad\">{}</td>", escape(text)),
    }
}
