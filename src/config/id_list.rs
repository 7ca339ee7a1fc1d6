//! Lists of CPUs and of memory nodes in the kernel's format: `0-3,8`.

use std::collections::BTreeSet;
use std::str::FromStr;

/// Exclusive upper bound of an id: more CPUs or memory nodes than any machine has.
const LIMIT: u32 = 8192;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdList(BTreeSet<u32>);

impl IdList {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromStr for IdList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number: &u32| *number < LIMIT);
        // Ranges may overlap: each costs no more than a copy of the whole list.
        let mut ids = [false; LIMIT as usize];
        for (place, part) in text.split(',').enumerate() {
            if place >= LIMIT as usize {
                return Err(format!("it has more than {LIMIT} parts"));
            }
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => ids[first as usize..=last as usize].fill(true),
                _ => return Err(format!("{part:?} in it is neither a number nor a range such as \"0-3\"")),
            }
        }
        Ok(Self((0..LIMIT).filter(|id| ids[*id as usize]).collect()))
    }
}

impl std::fmt::Display for IdList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&ids.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_cost_no_more_than_one() {
        let begun = std::time::Instant::now();
        assert_eq!(["0-8191"; 8192].join(",").parse::<IdList>().unwrap().len(), 8192);
        assert!(["1"; 8193].join(",").parse::<IdList>().unwrap_err().contains("8192"));
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    }

    #[test]
    fn an_id_list_has_numbers_and_ranges() {
        let list = |text: &str| text.parse::<IdList>();
        assert_eq!(list("0-2,5").unwrap().to_string(), "0,1,2,5");
        assert_eq!(list("3").unwrap().len(), 1);
        assert!(list("1-2").unwrap().is_within(&list("0-3").unwrap()));
        assert!(!list("1-4").unwrap().is_within(&list("0-3").unwrap()));
        for wrong in ["", "a", "1,", "2-1", "-1", "1-", "0-99999", "1 2"] {
            list(wrong).unwrap_err();
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn lists() {
        crate::fuzz::text("id-list", |text| {
            let Ok(list) = text.parse::<IdList>() else { return };
            assert!(!list.is_empty() && list.len() <= LIMIT as usize);
            assert_eq!(list.to_string().parse().as_ref(), Ok(&list));
        });
    }
}
