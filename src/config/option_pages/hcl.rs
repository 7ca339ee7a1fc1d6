//! Parser for the HCL that the pages use: attributes, blocks, literals, lists, maps and comments.

use serde_json::{Map, Value};

/// Parses the attributes and blocks of a body. A repeated block becomes a list.
///
/// # Panics
/// If the text is anything else.
pub(super) fn body(text: &str) -> Map<String, Value> {
    let mut rest = Rest(text);
    let body = rest.body();
    assert!(rest.0.is_empty(), "not read: {}", rest.0);
    body
}

/// The text that is not parsed yet.
struct Rest<'a>(&'a str);

impl Rest<'_> {
    /// Parses attributes and blocks until the end of the text, or a closing brace.
    fn body(&mut self) -> Map<String, Value> {
        let mut body = Map::new();
        while !self.next().is_empty() && !self.0.starts_with('}') {
            let name = self.name();
            let value = if self.take("=") { self.value() } else { self.block() };
            match body.get_mut(&name) {
                None => drop(body.insert(name, value)),
                Some(Value::Array(list)) => list.push(value),
                Some(first) => *first = Value::Array(vec![first.take(), value]),
            }
            self.take(",");
        }
        body
    }

    fn block(&mut self) -> Value {
        assert!(self.take("{"), "no block: {}", self.0);
        let body = self.body();
        assert!(self.take("}"), "no end of a block: {}", self.0);
        Value::Object(body)
    }

    fn value(&mut self) -> Value {
        if self.next().starts_with('{') {
            return self.block();
        }
        if !self.take("[") {
            return self.literal();
        }
        let mut list = Vec::new();
        while !self.take("]") {
            list.push(self.value());
            self.take(",");
        }
        Value::Array(list)
    }

    /// Parses a string, a number or a bool, which are written as in JSON.
    fn literal(&mut self) -> Value {
        let mut values = serde_json::Deserializer::from_str(self.next()).into_iter();
        let value = values.next().and_then(Result::ok).unwrap_or_else(|| panic!("no value: {}", self.0));
        self.0 = &self.0[values.byte_offset()..];
        value
    }

    fn name(&mut self) -> String {
        if self.next().starts_with('"') {
            return self.literal().as_str().map(str::to_owned).unwrap_or_default();
        }
        let end = self.0.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(end);
        assert!(!name.is_empty(), "no name: {rest}");
        self.0 = rest;
        name.to_owned()
    }

    /// Consumes the token if it is next.
    fn take(&mut self, token: &str) -> bool {
        let rest = self.next().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }
}

impl<'a> Rest<'a> {
    /// Returns the remaining text, after blanks and comments.
    fn next(&mut self) -> &'a str {
        self.0 = self.0.trim_start();
        while self.0.starts_with('#') {
            self.0 = self.0.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
        }
        self.0
    }
}
