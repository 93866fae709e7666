//! Sets of ranks as ranges: a world may be far larger than the number of ranks that are there.

use std::fmt;
use std::ops::RangeInclusive;

/// Some ranks of a world. Shown as people write them: `0, 2-5`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RankSet {
    /// Ascending, with a gap between any two.
    ranges: Vec<(u32, u32)>,
}

impl RankSet {
    /// The set's ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u32>> + '_ {
        self.ranges.iter().map(|(first, last)| *first..=*last)
    }

    /// The set's ranks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges().flatten()
    }

    /// How many ranks it holds.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    /// Whether it holds no rank.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether it holds `rank`.
    pub fn contains(&self, rank: u32) -> bool {
        let index = self.ranges.partition_point(|(_, last)| *last < rank);
        self.ranges.get(index).is_some_and(|(first, _)| *first <= rank)
    }

    /// Whether any rank is in both sets.
    pub fn overlaps(&self, other: &RankSet) -> bool {
        self.ranges.iter().any(|(first, last)| {
            let index = other.ranges.partition_point(|(_, end)| end < first);
            other.ranges.get(index).is_some_and(|(start, _)| start <= last)
        })
    }

    /// The ranks below `world` that are not in the set.
    pub fn complement(&self, world: u32) -> RankSet {
        let mut next = 0;
        let mut ranges = Vec::new();
        for (first, last) in &self.ranges {
            if *first >= world {
                break;
            }
            if *first > next {
                ranges.push((next, first - 1));
            }
            next = last.saturating_add(1);
        }
        if next < world {
            ranges.push((next, world - 1));
        }
        RankSet { ranges }
    }

    /// The ranks that are in either set.
    pub fn union(&self, other: &RankSet) -> RankSet {
        let mut ranges = [self.ranges.as_slice(), &other.ranges].concat();
        ranges.sort_unstable();
        RankSet::merged(ranges)
    }

    /// From ascending ranges that may touch and overlap.
    fn merged(sorted: impl IntoIterator<Item = (u32, u32)>) -> RankSet {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for (first, last) in sorted {
            match ranges.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => ranges.push((first, last)),
            }
        }
        RankSet { ranges }
    }
}

impl FromIterator<u32> for RankSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ranks: I) -> RankSet {
        let mut ranks: Vec<u32> = ranks.into_iter().collect();
        ranks.sort_unstable();
        RankSet::merged(ranks.into_iter().map(|rank| (rank, rank)))
    }
}

/// Ranges that are shown before the rest is only counted.
const SHOWN: usize = 8;

impl fmt::Display for RankSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.ranges.iter().take(SHOWN).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first}, {last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        let shown: u64 = self.ranges.iter().take(SHOWN).map(|(first, last)| u64::from(last - first) + 1).sum();
        match self.len() - shown {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sets_are_shown_as_people_write_them() {
        for (ranks, shown) in [
            (vec![], ""),
            (vec![3], "3"),
            (vec![4, 3], "3, 4"),
            (vec![0, 2, 3, 4, 5, 9], "0, 2-5, 9"),
            ((0..20).map(|n| n * 2).collect(), "0, 2, 4, 6, 8, 10, 12, 14 and 12 more"),
        ] {
            assert_eq!(ranks.into_iter().collect::<RankSet>().to_string(), shown);
        }
    }

    #[test]
    fn a_huge_world_costs_nothing() {
        let absent = RankSet::from_iter([7]).complement(u32::MAX);
        assert_eq!(absent.to_string(), "0-6, 8-4294967294");
        assert_eq!(absent.len(), u64::from(u32::MAX) - 1);
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            a in proptest::collection::btree_set(0u32..40, 0..20),
            b in proptest::collection::btree_set(0u32..40, 0..20),
            world in 0u32..40,
        ) {
            let (x, y): (RankSet, RankSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(x.len(), a.len() as u64);
            prop_assert!((0..40).all(|rank| x.contains(rank) == a.contains(&rank)));
            prop_assert_eq!(x.union(&y).iter().collect::<BTreeSet<_>>(), a.union(&b).copied().collect());
            prop_assert_eq!(x.overlaps(&y), !a.is_disjoint(&b));
            let others: BTreeSet<u32> = (0..world).filter(|rank| !a.contains(rank)).collect();
            prop_assert_eq!(x.complement(world).iter().collect::<BTreeSet<_>>(), others);
        }
    }
}
