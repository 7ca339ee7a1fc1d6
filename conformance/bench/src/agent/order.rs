//! The order in which sides and floors take their turns: shuffled anew for each round, so that no side has the same
//! neighbour again and again. Made from a seed, by which a run can be repeated.

use super::kind::Kind;

/// An odd number with bits all over, by which neighbouring seeds lead to unlike orders.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the order of the turns of a round. Two take turns in being the first.
pub(crate) fn order(seed: u64, kind: Kind, round: u32, turns: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..turns).collect();
    if turns <= 2 {
        all.rotate_left(round as usize % turns.max(1));
        return all;
    }
    let of_round = (u64::from(round) << 8 | kind as u64).wrapping_mul(SPREAD);
    fastrand::Rng::with_seed(seed ^ of_round).shuffle(&mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_differ_by_round_and_seed_and_have_each_turn_once() {
        let orders: Vec<_> = (0..4).map(|round| order(7, Kind::Single, round, 12)).collect();
        for one in &orders {
            let mut sorted = one.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..12).collect::<Vec<_>>());
        }
        assert!(orders[0] != orders[1] && orders[1] != orders[2] && orders[2] != orders[3]);
        assert_eq!(orders[2], order(7, Kind::Single, 2, 12), "a seed leads to the same order");
        assert_ne!(orders[2], order(8, Kind::Single, 2, 12));
        assert_ne!(orders[2], order(7, Kind::Logs, 2, 12));
    }

    #[test]
    fn a_turn_has_another_neighbour_before_it_in_most_rounds() {
        let before = |round| {
            let order = order(1, Kind::Logs, round, 8);
            let place = order.iter().position(|turn| *turn == 0).unwrap();
            place.checked_sub(1).map(|place| order[place])
        };
        let neighbours: std::collections::BTreeSet<_> = (0..16).map(before).collect();
        assert!(neighbours.len() > 4, "{neighbours:?}");
    }

    #[test]
    fn of_two_each_is_first_in_half_of_the_rounds() {
        let first: Vec<_> = (0..4).map(|round| order(7, Kind::Rest, round, 2)[0]).collect();
        assert_eq!(first, [0, 1, 0, 1]);
        assert_eq!(order(7, Kind::Rest, 3, 1), [0]);
        assert!(order(7, Kind::Rest, 3, 0).is_empty());
    }
}
