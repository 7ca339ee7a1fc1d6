//! Numbers, texts and paths that depend on nothing but a seed.

/// A generator of numbers: SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(u64);

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
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    /// Returns true in so many of a hundred cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub fn word(&mut self, of: &[&'static str]) -> &'static str {
        of[self.below(of.len())]
    }

    /// Returns from `least` to `most` different ones of a list, in any order, or all if there are fewer.
    pub fn some<T: Copy>(&mut self, of: &[T], least: usize, most: usize) -> Vec<T> {
        let (mut left, mut taken) = (of.to_vec(), Vec::new());
        let count = least + self.below(most - least + 1);
        while taken.len() < count && !left.is_empty() {
            let at = self.below(left.len());
            taken.push(left.swap_remove(at));
        }
        taken
    }

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
    fn a_seed_gives_the_same_numbers_again() {
        let texts = |seed| {
            let mut random = Random::of(seed);
            (0..20).map(|_| random.text()).collect::<Vec<_>>()
        };
        assert_eq!(texts(7), texts(7));
        assert_ne!(texts(7), texts(8));
    }

    #[test]
    fn some_of_a_list_are_different_ones() {
        let mut random = Random::of(1);
        for _ in 0..100 {
            let mut some = random.some(&[1, 2, 3, 4], 1, 6);
            let count = some.len();
            some.sort_unstable();
            some.dedup();
            assert!(some.len() == count && (1..=4).contains(&count), "{some:?}");
        }
    }
}
