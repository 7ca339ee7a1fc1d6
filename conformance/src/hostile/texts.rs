//! Texts and paths that depend on nothing but a seed.

use crate::random::Random;

/// Texts that some reader of a configuration treats in a special way.
const TEXTS: [&str; 34] = [
    "",
    " ",
    ".",
    "..",
    "/",
    "a/../..",
    "\n",
    "\r\n",
    "\0",
    "\t",
    "\u{1b}[2J",
    "\u{7f}",
    "\u{e9}",
    "\u{202e}abc",
    "\u{feff}",
    "\u{1f980}",
    "%s%n",
    "$(id)",
    "${HOME}",
    "'\"`",
    "\\",
    "-rf",
    "--",
    "=",
    ":",
    ",",
    "{}",
    "*",
    "null",
    "-1",
    "18446744073709551616",
    "host",
    "nomad",
    "127.0.0.1",
];

/// Parts of paths, of an allocation and of the host.
const PARTS: [&str; 24] = [
    "..", "..", "..", ".", "", "local", "local", "alloc", "secrets", "private", "web", "x", "y", "sub", "a",
    "logs", "data", "tmp", "proc", "self", "root", "fd", "etc", "dev",
];

impl Random {
    /// Returns a text of up to three special parts, or of any characters, seldom a very long one.
    pub fn text(&mut self) -> String {
        match self.below(12) {
            0 => self.pick(&TEXTS).repeat(1 + self.below(300)),
            1 => "x".repeat(1 << self.below(17)),
            2..=4 => {
                let count = 1 + self.below(12);
                (0..count).map(|_| self.character()).collect()
            }
            5..=7 => format!("{}{}{}", self.pick(&TEXTS), self.pick(&TEXTS), self.pick(&TEXTS)),
            8 => format!("x{}y", self.pick(&TEXTS)),
            _ => (*self.pick(&TEXTS)).to_owned(),
        }
    }

    fn character(&mut self) -> char {
        let limit = *self.pick(&[0x80, 0x80, 0x100, 0x3000, 0x11_0000]);
        u32::try_from(self.below(limit)).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
    }

    /// Returns a path of up to six parts below one of the roots, or a relative one.
    pub fn path(&mut self, roots: &[String]) -> String {
        let mut path = if self.chance(40) { self.pick(roots).clone() } else { String::new() };
        for _ in 0..=self.below(6) {
            let part = if self.chance(10) { self.text() } else { (*self.pick(&PARTS)).to_owned() };
            if !path.is_empty() || self.chance(25) {
                path.push('/');
            }
            path.push_str(&part);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_texts_again() {
        let texts = |seed| {
            let mut random = Random::of(seed);
            (0..20).map(|_| random.text()).collect::<Vec<_>>()
        };
        assert_eq!(texts(7), texts(7));
        assert_ne!(texts(7), texts(8));
    }
}
