//! Where the chains of waiting end: the strongly connected components of a graph that nothing leaves.

/// The components without an edge to any other, of the graph of `nodes` nodes whose edges `edge` knows. A node alone
/// is one that waits for nobody; several together wait for each other.
pub(super) fn ends(nodes: usize, edge: impl Fn(usize, usize) -> bool) -> Vec<Vec<usize>> {
    // Kosaraju's algorithm: each search backwards, from the node last finished forwards, finds one component.
    let mut seen = vec![false; nodes];
    let mut finished = Vec::with_capacity(nodes);
    for start in 0..nodes {
        search(start, &mut seen, &edge, |node| finished.push(node));
    }
    seen.fill(false);
    let mut component = vec![0; nodes];
    let mut components: Vec<Vec<usize>> = Vec::new();
    for start in finished.into_iter().rev() {
        let mut members = Vec::new();
        search(start, &mut seen, |from, to| edge(to, from), |node| members.push(node));
        members.iter().for_each(|member| component[*member] = components.len());
        if !members.is_empty() {
            members.sort_unstable();
            components.push(members);
        }
    }
    let leaves = |members: &[usize]| {
        members.iter().any(|from| (0..nodes).any(|to| component[to] != component[*from] && edge(*from, to)))
    };
    components.retain(|members| !leaves(members));
    components.sort_unstable();
    components
}

/// Which nodes can be reached from `starts`, those included.
pub(super) fn reachable(
    nodes: usize,
    starts: impl IntoIterator<Item = usize>,
    edge: impl Fn(usize, usize) -> bool,
) -> Vec<bool> {
    let mut seen = vec![false; nodes];
    starts.into_iter().for_each(|start| search(start, &mut seen, &edge, |_| {}));
    seen
}

/// Depth first from `start` through nodes not seen before; tells each node when it is done with it. It keeps its own
/// stack: a thread's may be too small for a path through all nodes.
fn search(start: usize, seen: &mut [bool], edge: impl Fn(usize, usize) -> bool, mut finish: impl FnMut(usize)) {
    if std::mem::replace(&mut seen[start], true) {
        return;
    }
    // Each node with the first node that was not tried from it yet.
    let mut path = vec![(start, 0)];
    while let Some((node, next)) = path.last_mut() {
        let from = *node;
        match (*next..seen.len()).find(|to| !seen[*to] && edge(from, *to)) {
            Some(to) => {
                *next = to + 1;
                seen[to] = true;
                path.push((to, 0));
            }
            None => {
                finish(from);
                path.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chains_end_in_nodes_and_circles() {
        let edges = [(0, 1), (1, 2), (3, 4), (4, 5), (5, 4), (6, 6)];
        assert_eq!(ends(7, |a, b| edges.contains(&(a, b))), [vec![2], vec![4, 5], vec![6]]);
        assert!(ends(0, |_, _| true).is_empty());
    }

    proptest! {
        #[test]
        fn ends_are_what_their_members_reach(edges in proptest::collection::vec(any::<bool>(), 49)) {
            let edge = |a: usize, b: usize| edges[a * 7 + b];
            let reach: Vec<Vec<bool>> = (0..7).map(|start| reachable(7, [start], edge)).collect();
            let found = ends(7, edge);
            for node in 0..7 {
                let is_end = (0..7).all(|other| !reach[node][other] || reach[other][node]);
                let of: Vec<_> = found.iter().filter(|members| members.contains(&node)).collect();
                prop_assert_eq!(of.len(), usize::from(is_end));
                if let [members] = of[..] {
                    prop_assert_eq!(members, &(0..7).filter(|other| reach[node][*other]).collect::<Vec<_>>());
                }
            }
        }
    }
}
