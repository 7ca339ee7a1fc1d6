//! Parses the `WWW-Authenticate` header of a registry, which says where to ask for a token. Pure.
//!
//! Source of the facts: RFC 9110 section 11.6.1 (the grammar), distribution `docs/spec/auth/token.md` (its parameters).

use std::collections::HashMap;

/// A Bearer challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

/// Returns whether a header asks for a user's name and password.
pub(super) fn is_basic(header: &str) -> bool {
    let mut rest = header;
    while !rest.is_empty() {
        let (scheme, after) = token(rest.trim_start_matches([' ', ',']));
        if scheme.is_empty() {
            return false;
        }
        if scheme.eq_ignore_ascii_case("basic") {
            return true;
        }
        rest = parameters(after).1;
    }
    false
}

/// Returns the first Bearer challenge of a header, which may hold several challenges.
pub(super) fn bearer(header: &str) -> Option<Challenge> {
    let mut rest = header;
    while !rest.is_empty() {
        let (scheme, after) = token(rest.trim_start_matches([' ', ',']));
        if scheme.is_empty() {
            return None;
        }
        let (mut parameters, after) = parameters(after);
        if scheme.eq_ignore_ascii_case("bearer") {
            let realm = parameters.remove("realm")?;
            return Some(Challenge {
                realm,
                service: parameters.remove("service"),
                scope: parameters.remove("scope"),
            });
        }
        rest = after;
    }
    None
}

/// Parses `name=value` pairs up to the end or to the next scheme, which is a name that no `=` follows.
fn parameters(mut text: &str) -> (HashMap<String, String>, &str) {
    let mut found = HashMap::new();
    loop {
        let at_pair = text.trim_start_matches([' ', ',']);
        let (name, after) = token(at_pair);
        let Some(value) = after.trim_start().strip_prefix('=') else {
            return (found, at_pair);
        };
        let (value, after) = parameter_value(value.trim_start());
        found.insert(name.to_ascii_lowercase(), value);
        text = after;
    }
}

fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = token(text);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

fn token(text: &str) -> (&str, &str) {
    text.split_at(text.find([' ', ',', '=', '"']).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn docker_hubs_challenge_is_parsed() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/redis:pull,push""#;
        let scope = "repository:library/redis:pull,push";
        let expected = challenge("https://auth.docker.io/token", Some("registry.docker.io"), Some(scope));
        assert_eq!(bearer(header), expected);
    }

    #[test]
    fn challenges_are_parsed_despite_spaces_quotes_and_case() {
        assert_eq!(
            bearer(r#"bearer Realm = "https://a/t" , scope=x"#),
            challenge("https://a/t", None, Some("x"))
        );
        assert_eq!(
            bearer(r#"Basic realm="b", Bearer realm="https://a""#),
            challenge("https://a", None, None)
        );
        assert_eq!(bearer(r#"Bearer realm="a\"b",service="#), challenge("a\"b", Some(""), None));
    }

    #[test]
    fn a_basic_challenge_is_recognized() {
        for header in ["Basic", r#"Basic realm="b""#, r#"Bearer realm="Basic", basic realm="b""#] {
            assert!(is_basic(header), "{header}");
        }
        for header in ["", r#"Bearer realm="https://a/basic""#, "Negotiate", "\"", ",,"] {
            assert!(!is_basic(header), "{header}");
        }
    }

    #[test]
    fn other_challenges_are_no_bearer_challenge() {
        for header in [
            "",
            "Basic",
            r#"Basic realm="b""#,
            "Bearer",
            r#"Bearer service="s""#,
            "=",
            ",,,",
            "\"",
            "Bearer =\"",
        ] {
            assert_eq!(bearer(header), None, "{header}");
        }
        assert_eq!(bearer(r#"Bearer realm="unclosed"#), challenge("unclosed", None, None));
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn challenges() {
        crate::fuzz::text("www-authenticate", |header| {
            is_basic(header);
            let Some(Challenge { realm, service, scope }) = bearer(header) else { return };
            let parts = [Some(realm.clone()), service.clone(), scope.clone()];
            assert!(parts.iter().flatten().map(String::len).sum::<usize>() <= header.len());
            let quoted = |text: &String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let mut printed = format!("Bearer realm={}", quoted(&realm));
            for (name, value) in [("service", &service), ("scope", &scope)] {
                printed.extend(value.iter().map(|value| format!(",{name}={}", quoted(value))));
            }
            assert_eq!(bearer(&printed), Some(Challenge { realm, service, scope }), "{printed}");
            assert!(!is_basic(&printed), "{printed}");
        });
    }
}
