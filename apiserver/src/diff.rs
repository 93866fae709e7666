//! Unified differences of texts, found as Python's `difflib` finds them (Ratcliff and Obershelp): messages of
//! kube-apiserver show such differences.

use std::collections::HashMap;

/// Equal lines shown around each change.
const CONTEXT: usize = 3;
/// In texts of this many lines or more, lines that occur often are no anchors.
const LONG: usize = 200;

/// `a[0..2]` became `b[1..2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    equal: bool,
    a: (usize, usize),
    b: (usize, usize),
}

struct Matcher<'a> {
    a: Vec<&'a str>,
    b: Vec<&'a str>,
    /// Where each line of `b` is.
    places: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Matcher<'a> {
    fn new(a: Vec<&'a str>, b: Vec<&'a str>) -> Self {
        let mut places: HashMap<&'a str, Vec<usize>> = HashMap::new();
        for (place, line) in b.iter().enumerate() {
            places.entry(line).or_default().push(place);
        }
        if b.len() >= LONG {
            let often = b.len() / 100 + 1;
            places.retain(|_, found| found.len() <= often);
        }
        Matcher { a, b, places }
    }

    /// The longest block that is in both, the first of them: its start in each and its length.
    fn longest(&self, a: (usize, usize), b: (usize, usize)) -> (usize, usize, usize) {
        let (mut best_a, mut best_b, mut size) = (a.0, b.0, 0);
        let mut lengths: HashMap<usize, usize> = HashMap::new();
        for i in a.0..a.1 {
            let mut next = HashMap::new();
            for &j in self.places.get(self.a[i]).map(Vec::as_slice).unwrap_or_default() {
                if j < b.0 {
                    continue;
                }
                if j >= b.1 {
                    break;
                }
                let length = j.checked_sub(1).and_then(|before| lengths.get(&before)).copied().unwrap_or(0) + 1;
                next.insert(j, length);
                if length > size {
                    (best_a, best_b, size) = (i + 1 - length, j + 1 - length, length);
                }
            }
            lengths = next;
        }
        while best_a > a.0 && best_b > b.0 && self.a[best_a - 1] == self.b[best_b - 1] {
            (best_a, best_b, size) = (best_a - 1, best_b - 1, size + 1);
        }
        while best_a + size < a.1 && best_b + size < b.1 && self.a[best_a + size] == self.b[best_b + size] {
            size += 1;
        }
        (best_a, best_b, size)
    }

    fn changes(&self) -> Vec<Change> {
        let mut blocks = Vec::new();
        let mut open = vec![((0, self.a.len()), (0, self.b.len()))];
        while let Some((a, b)) = open.pop() {
            let (i, j, size) = self.longest(a, b);
            if size > 0 {
                blocks.push((i, j, size));
                open.push(((a.0, i), (b.0, j)));
                open.push(((i + size, a.1), (j + size, b.1)));
            }
        }
        blocks.sort_unstable();
        blocks.push((self.a.len(), self.b.len(), 0));
        let mut changes: Vec<Change> = Vec::new();
        let (mut i, mut j) = (0, 0);
        for (a, b, size) in blocks {
            if i < a || j < b {
                changes.push(Change { equal: false, a: (i, a), b: (j, b) });
            }
            (i, j) = (a + size, b + size);
            match changes.last_mut() {
                // Blocks that touch are one.
                Some(last) if last.equal && last.a.1 == a && last.b.1 == b => (last.a.1, last.b.1) = (i, j),
                _ if size > 0 => changes.push(Change { equal: true, a: (a, i), b: (b, j) }),
                _ => {}
            }
        }
        changes
    }
}

/// Changes with the equal lines around them, those together that are near each other.
fn hunks(mut changes: Vec<Change>) -> Vec<Vec<Change>> {
    if let Some(first) = changes.first_mut().filter(|first| first.equal) {
        first.a.0 = first.a.0.max(first.a.1.saturating_sub(CONTEXT));
        first.b.0 = first.b.0.max(first.b.1.saturating_sub(CONTEXT));
    }
    if let Some(last) = changes.last_mut().filter(|last| last.equal) {
        last.a.1 = last.a.1.min(last.a.0 + CONTEXT);
        last.b.1 = last.b.1.min(last.b.0 + CONTEXT);
    }
    let mut hunks = Vec::new();
    let mut hunk: Vec<Change> = Vec::new();
    for change in changes {
        if change.equal && change.a.1 - change.a.0 > 2 * CONTEXT {
            let end = |range: (usize, usize)| (range.0, range.1.min(range.0 + CONTEXT));
            let start = |range: (usize, usize)| (range.0.max(range.1.saturating_sub(CONTEXT)), range.1);
            hunk.push(Change { a: end(change.a), b: end(change.b), ..change });
            hunks.push(std::mem::take(&mut hunk));
            hunk.push(Change { a: start(change.a), b: start(change.b), ..change });
        } else {
            hunk.push(change);
        }
    }
    if !(hunk.is_empty() || hunk.len() == 1 && hunk[0].equal) {
        hunks.push(hunk);
    }
    hunks
}

fn range((start, end): (usize, usize)) -> String {
    match end - start {
        1 => format!("{}", start + 1),
        0 => format!("{start},0"),
        length => format!("{},{length}", start + 1),
    }
}

/// The difference of two texts, empty where there is none.
pub(crate) fn unified(old: &str, new: &str) -> String {
    let matcher = Matcher::new(old.split('\n').collect(), new.split('\n').collect());
    let mut out = String::new();
    for hunk in hunks(matcher.changes()) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
        out.push_str(&format!("@@ -{} +{} @@\n", range((first.a.0, last.a.1)), range((first.b.0, last.b.1))));
        for change in &hunk {
            let mut lines = |mark: char, lines: &[&str]| {
                for line in lines {
                    out.push(mark);
                    out.push_str(line);
                    out.push('\n');
                }
            };
            if change.equal {
                lines(' ', &matcher.a[change.a.0..change.a.1]);
            } else {
                lines('-', &matcher.a[change.a.0..change.a.1]);
                lines('+', &matcher.b[change.b.0..change.b.1]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn changes_are_shown_with_what_is_around_them() {
        assert_eq!(unified("a\nb", "a\nb"), "");
        assert_eq!(unified("a\nb\nc", "a\nx\nc"), "@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n");
        assert_eq!(unified("a", "a\nb"), "@@ -1 +1,2 @@\n a\n+b\n");
        let old: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let mut new = old.clone();
        new[1] = "one".into();
        new[17] = "more".into();
        assert_eq!(
            unified(&old.join("\n"), &new.join("\n")),
            "@@ -1,5 +1,5 @@\n 0\n-1\n+one\n 2\n 3\n 4\n@@ -15,6 +15,6 @@\n 14\n 15\n 16\n-17\n+more\n 18\n 19\n"
        );
    }

    proptest! {
        #[test]
        fn the_changes_lead_from_one_text_to_the_other(a in "[abc\n]{0,40}", b in "[abc\n]{0,40}") {
            let matcher = Matcher::new(a.split('\n').collect(), b.split('\n').collect());
            let (mut i, mut j) = (0, 0);
            for change in matcher.changes() {
                prop_assert_eq!((change.a.0, change.b.0), (i, j));
                if change.equal {
                    prop_assert_eq!(&matcher.a[i..change.a.1], &matcher.b[j..change.b.1]);
                }
                (i, j) = (change.a.1, change.b.1);
            }
            prop_assert_eq!((i, j), (matcher.a.len(), matcher.b.len()));
        }
    }
}
