//! Reads the HCL of the pages: attributes, blocks, literals, lists, maps and comments, which is all that they have.

use serde_json::{Map, Value};

/// The attributes and blocks of a body. A block that is there several times is a list.
///
/// # Panics
/// Where the text is something else.
pub(super) fn body(text: &str) -> Map<String, Value> {
    let mut rest = Rest(text);
    let body = rest.body();
    assert!(rest.0.is_empty(), "not read: {}", rest.0);
    body
}

/// What is not read yet.
struct Rest<'a>(&'a str);

impl Rest<'_> {
    /// Reads until the end, or to a closing brace.
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

    /// A text, a number or a bool, which are written as in JSON.
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
        let end = self.0.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(end);
        assert!(!name.is_empty(), "no name: {rest}");
        self.0 = rest;
        name.to_owned()
    }

    /// Reads this token, if it comes next.
    fn take(&mut self, token: &str) -> bool {
        let rest = self.next().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }
}

impl<'a> Rest<'a> {
    /// What comes next, beyond blanks and comments.
    fn next(&mut self) -> &'a str {
        self.0 = self.0.trim_start();
        while self.0.starts_with('#') {
            self.0 = self.0.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
        }
        self.0
    }
}
