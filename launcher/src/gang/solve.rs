//! Decides which waiting gangs start, and where: `solve(problem) -> solution`, a pure function.
//!
//! * Gangs are taken by priority, then age. The pods of a gang that must start together all find a place, or none
//!   is placed; pods beyond `min_member` follow where they fit.
//! * A gang that does not fit does not stop those behind it, until it has waited `reserve_after`. From then on its
//!   places are reserved: what started before may finish there, but a gang behind it starts only if the places
//!   stay available beside it. So it starts, at the latest, when what ran before it is done; and what fits beside
//!   it is never blocked. One gang, the first in order, holds a reservation at a time.
//! * Nothing that is placed is ever moved or preempted, so solving again after a commit places nothing new.
//!
//! It does not know how long pods run, prefer spreading over packing, or look at affinity between pods.

use super::problem::{Gang, GangId, Node, PendingPod, Problem, Resources};
use super::reason::{Closest, Reason, Refusal, shortfalls};
use jiff::Timestamp;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// One pod that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub pod: String,
    pub uid: String,
    pub node: String,
}

/// A gang of which pods start now, all in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub gang: GangId,
    pub placements: Vec<Placement>,
}

/// A gang of which no pod starts now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub gang: GangId,
    pub reason: Reason,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Solution {
    pub starts: Vec<Start>,
    pub waiting: Vec<Waiting>,
    /// When the same problem may have another answer: a gang's reservation begins.
    pub wake_at: Option<Timestamp>,
}

/// Upper bound of the exact search's steps for one gang; the greedy pass before it decides nearly always.
const SEARCH_STEPS: usize = 20_000;

pub fn solve(problem: &Problem) -> Solution {
    let mut free: Vec<Resources> = problem.nodes.iter().map(free_on).collect();
    let mut order: Vec<&Gang> = problem.gangs.iter().filter(|g| !g.pods.is_empty()).collect();
    order.sort_by(|a, b| (b.priority, a.created, &a.id).cmp(&(a.priority, b.created, &b.id)));

    let mut solution = Solution::default();
    let mut reservation: Option<Reservation> = None;
    let mut refused = Refused::default();
    for gang in order {
        let found = match refused.reason_for(gang) {
            Some(reason) => Err(reason.clone()),
            None => place(gang, &problem.nodes, &free, reservation.as_ref()),
        };
        match found {
            Ok(chosen) => {
                refused.forget();
                let mut placements = Vec::with_capacity(chosen.len());
                for (pod, node) in chosen {
                    let pod = &gang.pods[pod];
                    subtract(&mut free[node], &pod.requests);
                    if let Some(reservation) = &mut reservation {
                        subtract(&mut reservation.beside[node], &pod.requests);
                    }
                    placements.push(Placement {
                        pod: pod.name.clone(),
                        uid: pod.uid.clone(),
                        node: problem.nodes[node].name.clone(),
                    });
                }
                solution.starts.push(Start { gang: gang.id.clone(), placements });
            }
            Err(reason) => {
                // Pods beyond the minimum of a gang that runs already wait without a claim.
                if reservation.is_none() && needed(gang) > 0 && matches!(reason, Reason::Insufficient { .. }) {
                    let begins = gang.waiting_since.saturating_add(problem.reserve_after).unwrap_or(Timestamp::MAX);
                    if begins <= problem.now {
                        reservation = Reservation::for_gang(gang, begins, &problem.nodes, &free);
                        refused.forget();
                    } else {
                        solution.wake_at = Some(solution.wake_at.map_or(begins, |at| at.min(begins)));
                    }
                }
                refused.remember(gang, &reason);
                solution.waiting.push(Waiting { gang: gang.id.clone(), reason });
            }
        }
    }
    solution
}

/// What did not fit since something was last placed: its like does not fit either, for the same reason. A queue of a
/// thousand equal jobs costs one look at the nodes.
#[derive(Default)]
struct Refused<'a>(Vec<(&'a Gang, Reason)>);

impl<'a> Refused<'a> {
    /// More different gangs than this are not remembered.
    const MOST: usize = 16;

    fn reason_for(&self, gang: &Gang) -> Option<&Reason> {
        self.0.iter().find(|(known, _)| alike(known, gang)).map(|(_, reason)| reason)
    }

    fn remember(&mut self, gang: &'a Gang, reason: &Reason) {
        let of_its_own = matches!(reason, Reason::GroupMissing { .. });
        if !of_its_own && self.0.len() < Self::MOST && self.reason_for(gang).is_none() {
            self.0.push((gang, reason.clone()));
        }
    }

    fn forget(&mut self) {
        self.0.clear();
    }
}

/// Whether two gangs ask for the same.
fn alike(a: &Gang, b: &Gang) -> bool {
    (a.group_exists, a.min_member, a.bound, a.pods.len()) == (b.group_exists, b.min_member, b.bound, b.pods.len())
        && a.pods.iter().zip(&b.pods).all(|(a, b)| {
            a.requests == b.requests && a.node_selector == b.node_selector && a.tolerations == b.tolerations
        })
}

/// Places held for one gang.
struct Reservation {
    holder: GangId,
    /// By node: what those behind the holder may still take without delaying it.
    beside: Vec<Resources>,
}

impl Reservation {
    /// Reserves the places where the gang will start once everything bound before `begins` is done; none where it
    /// would not fit even then. What was bound later counts as running beside it for ever, so that the reserved
    /// places stay the same from one solve to the next.
    fn for_gang(gang: &Gang, begins: Timestamp, nodes: &[Node], free: &[Resources]) -> Option<Reservation> {
        let mut capacity: Vec<Resources> = Vec::with_capacity(nodes.len());
        for (node, free) in nodes.iter().zip(free) {
            let mut left = free.clone();
            for pod in node.pods.iter().filter(|p| p.bound_at < begins && *p.gang != gang.id) {
                add(&mut left, &pod.requests);
            }
            capacity.push(left);
        }
        let needed: Vec<usize> = (0..needed(gang)).collect();
        let accepts = acceptance(gang, nodes).0;
        let chosen = Search::new(gang, &accepts, &capacity).run(&needed)?;
        for (pod, node) in chosen {
            subtract(&mut capacity[node], &gang.pods[pod].requests);
        }
        Some(Reservation { holder: gang.id.clone(), beside: capacity })
    }
}

/// How many of the gang's pods must find a place at once.
fn needed(gang: &Gang) -> usize {
    gang.min_member.saturating_sub(gang.bound).min(gang.pods.len())
}

/// The gang's placements, as (index of pod, index of node), or why there are none.
fn place(
    gang: &Gang,
    nodes: &[Node],
    free: &[Resources],
    reservation: Option<&Reservation>,
) -> Result<Vec<(usize, usize)>, Reason> {
    if !gang.group_exists {
        return Err(Reason::GroupMissing { group: gang.id.name().to_owned() });
    }
    if gang.bound + gang.pods.len() < gang.min_member {
        return Err(Reason::MembersMissing { have: gang.bound + gang.pods.len(), need: gang.min_member });
    }
    if nodes.is_empty() {
        return Err(Reason::NoNodes);
    }
    let (accepts, refusals) = acceptance(gang, nodes);
    if let Some(none) = accepts.iter().take(needed(gang).max(1)).find(|row| !row.contains(&true)) {
        debug_assert_eq!(none.len(), nodes.len());
        return Err(Reason::Refused { refusals });
    }

    if let Some(chosen) = fit(gang, &accepts, within(free, reservation).as_ref()) {
        return Ok(chosen);
    }
    if let Some(reservation) = reservation
        && fit(gang, &accepts, free).is_some()
    {
        return Err(Reason::Reserved { holder: reservation.holder.clone() });
    }
    Err(insufficient(gang, nodes, &accepts, refusals, free))
}

/// What may be taken now: what is free, and does not delay the holder of the reservation.
fn within<'a>(free: &'a [Resources], reservation: Option<&Reservation>) -> Cow<'a, [Resources]> {
    let Some(reservation) = reservation else { return Cow::Borrowed(free) };
    let mut limited = free.to_vec();
    for (free, beside) in limited.iter_mut().zip(&reservation.beside) {
        for (resource, amount) in free.iter_mut() {
            *amount = (*amount).min(beside.get(resource).copied().unwrap_or(0));
        }
    }
    Cow::Owned(limited)
}

/// All pods, or the needed ones and of the rest what fits; at least one.
fn fit(gang: &Gang, accepts: &[Vec<bool>], free: &[Resources]) -> Option<Vec<(usize, usize)>> {
    let all: Vec<usize> = (0..gang.pods.len()).collect();
    if let Some(chosen) = arrange(gang, accepts, free, &all) {
        return Some(chosen);
    }
    let needed = needed(gang);
    if needed == gang.pods.len() {
        return None;
    }
    let mut chosen = arrange(gang, accepts, free, &all[..needed])?;
    let mut left = free.to_vec();
    for (pod, node) in &chosen {
        subtract(&mut left[*node], &gang.pods[*pod].requests);
    }
    for pod in needed..gang.pods.len() {
        if let Some(node) = best_fit(&gang.pods[pod], &accepts[pod], &left) {
            subtract(&mut left[node], &gang.pods[pod].requests);
            chosen.push((pod, node));
        }
    }
    (!chosen.is_empty()).then_some(chosen)
}

/// Places exactly `pods`: largest first, each where it leaves least; where that fails, by exact search.
fn arrange(gang: &Gang, accepts: &[Vec<bool>], free: &[Resources], pods: &[usize]) -> Option<Vec<(usize, usize)>> {
    let total = sum(free);
    let asked = sum(pods.iter().map(|p| gang.pods[*p].requests.as_ref()));
    if !fits(&asked, &total) {
        return None;
    }
    let (chosen, missed) = greedy(gang, accepts, free, pods);
    if missed.is_none() {
        return Some(chosen);
    }
    Search::new(gang, accepts, free).run(pods)
}

/// One pass over `pods`, largest first; stops at the first pod without a place.
fn greedy(
    gang: &Gang,
    accepts: &[Vec<bool>],
    free: &[Resources],
    pods: &[usize],
) -> (Vec<(usize, usize)>, Option<usize>) {
    let mut left = free.to_vec();
    let mut chosen = Vec::with_capacity(pods.len());
    for &pod in &by_size(gang, pods) {
        match best_fit(&gang.pods[pod], &accepts[pod], &left) {
            Some(node) => {
                subtract(&mut left[node], &gang.pods[pod].requests);
                chosen.push((pod, node));
            }
            None => return (chosen, Some(pod)),
        }
    }
    chosen.sort_unstable();
    (chosen, None)
}

/// The scarcest resources decide which pod is large: extended ones, then cpu, then memory.
fn by_size(gang: &Gang, pods: &[usize]) -> Vec<usize> {
    let size = |pod: usize| {
        let requests = &gang.pods[pod].requests;
        let get = |name: &str| requests.get(name).copied().unwrap_or(0);
        let extended: i64 = requests
            .iter()
            .filter(|(name, _)| name.contains('/'))
            .fold(0, |all, (_, amount)| all.saturating_add(*amount));
        (extended, get("cpu"), get("memory"))
    };
    let mut order = pods.to_vec();
    order.sort_by_key(|&pod| (std::cmp::Reverse(size(pod)), pod));
    order
}

/// The accepted node with room for the pod where least is left over of what it asks for; the first of equals.
fn best_fit(pod: &PendingPod, accepts: &[bool], free: &[Resources]) -> Option<usize> {
    let left_over = |free: &Resources| -> i128 {
        pod.requests
            .iter()
            .filter(|(_, amount)| **amount > 0)
            .map(|(resource, amount)| {
                let free = i128::from(free.get(resource).copied().unwrap_or(0));
                (free - i128::from(*amount)) * 1_000_000 / free.max(1)
            })
            .sum()
    };
    (0..free.len())
        .filter(|&node| accepts[node] && fits(&pod.requests, &free[node]))
        .min_by_key(|&node| (left_over(&free[node]), node))
}

/// Exact depth-first search, nodes in fixed order, so that the answer stays the same while it stays possible.
struct Search<'a> {
    gang: &'a Gang,
    accepts: &'a [Vec<bool>],
    left: Vec<Resources>,
    steps: usize,
}

impl<'a> Search<'a> {
    fn new(gang: &'a Gang, accepts: &'a [Vec<bool>], free: &[Resources]) -> Self {
        Search { gang, accepts, left: free.to_vec(), steps: 0 }
    }

    fn run(mut self, pods: &[usize]) -> Option<Vec<(usize, usize)>> {
        let order = by_size(self.gang, pods);
        let mut chosen = Vec::with_capacity(order.len());
        self.extend(&order, &mut chosen).then(|| {
            chosen.sort_unstable();
            chosen
        })
    }

    fn extend(&mut self, order: &[usize], chosen: &mut Vec<(usize, usize)>) -> bool {
        let Some((&pod, rest)) = order.split_first() else { return true };
        let requests = &self.gang.pods[pod].requests;
        // Pods that ask for the same are interchangeable: keep them on nodes in rising order.
        let first = match chosen.last() {
            Some(&(before, node))
                if self.gang.pods[before].requests == *requests && self.accepts[before] == self.accepts[pod] =>
            {
                node
            }
            _ => 0,
        };
        for node in first..self.left.len() {
            self.steps += 1;
            if self.steps > SEARCH_STEPS {
                return false;
            }
            if self.accepts[pod][node] && fits(requests, &self.left[node]) {
                subtract(&mut self.left[node], requests);
                chosen.push((pod, node));
                if self.extend(rest, chosen) {
                    return true;
                }
                chosen.pop();
                add(&mut self.left[node], requests);
            }
        }
        false
    }
}

/// By pod and node whether the node takes the pod at all, and why nodes refuse the first pod that they refuse.
fn acceptance(gang: &Gang, nodes: &[Node]) -> (Vec<Vec<bool>>, BTreeMap<Refusal, usize>) {
    let mut refusals = BTreeMap::new();
    let mut accepts: Vec<Vec<bool>> = Vec::with_capacity(gang.pods.len());
    for (index, pod) in gang.pods.iter().enumerate() {
        if let Some(before) = index.checked_sub(1)
            && gang.pods[before].node_selector == pod.node_selector
            && gang.pods[before].tolerations == pod.tolerations
        {
            accepts.push(accepts[before].clone());
            continue;
        }
        let verdicts: Vec<Option<Refusal>> = nodes.iter().map(|node| refusal(pod, node)).collect();
        if refusals.is_empty() {
            for refusal in verdicts.iter().flatten() {
                *refusals.entry(refusal.clone()).or_insert(0) += 1;
            }
        }
        accepts.push(verdicts.iter().map(Option::is_none).collect());
    }
    (accepts, refusals)
}

fn refusal(pod: &PendingPod, node: &Node) -> Option<Refusal> {
    let tolerated = |key: &str, value: &str, effect: &str| {
        let taint = super::problem::Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() };
        pod.tolerations.iter().any(|t| t.tolerates(&taint))
    };
    if !node.ready {
        return Some(Refusal::NotReady);
    }
    if node.unschedulable && !tolerated("node.kubernetes.io/unschedulable", "", "NoSchedule") {
        return Some(Refusal::Cordoned);
    }
    let taint = node.taints.iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
    if let Some(taint) = { taint }.find(|t| !tolerated(&t.key, &t.value, &t.effect)) {
        return Some(Refusal::Taint { key: taint.key.clone(), value: taint.value.clone() });
    }
    if !pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value)) {
        return Some(Refusal::Selector);
    }
    None
}

fn insufficient(
    gang: &Gang,
    nodes: &[Node],
    accepts: &[Vec<bool>],
    refusals: BTreeMap<Refusal, usize>,
    free: &[Resources],
) -> Reason {
    let needed: Vec<usize> = (0..needed(gang).max(1)).collect();
    let (chosen, missed) = greedy(gang, accepts, free, &needed);
    let missed = missed.unwrap_or(0);
    let mut left = free.to_vec();
    for (pod, node) in &chosen {
        subtract(&mut left[*node], &gang.pods[*pod].requests);
    }
    let usable: Vec<usize> = (0..nodes.len()).filter(|&n| needed.iter().any(|&p| accepts[p][n])).collect();
    let asked = sum(needed.iter().map(|p| gang.pods[*p].requests.as_ref()));
    let short =
        shortfalls(&asked, &sum(usable.iter().map(|n| &free[*n])), &sum(usable.iter().map(|n| &nodes[*n].allocatable)));
    let closest = (0..nodes.len())
        .filter(|&node| accepts[missed][node])
        .map(|node| (node, shortfalls(&gang.pods[missed].requests, &left[node], &nodes[node].allocatable)))
        .min_by_key(|(node, short)| {
            let lacking: i128 =
                short.iter().map(|s| i128::from(s.missing()) * 1_000_000 / i128::from(s.asked.max(1))).sum();
            (lacking, *node)
        })
        .map(|(node, short)| Closest { node: nodes[node].name.clone(), short });
    match closest {
        Some(closest) => Reason::Insufficient { pods: needed.len(), placed: chosen.len(), refusals, short, closest },
        None => Reason::Refused { refusals },
    }
}

fn free_on(node: &Node) -> Resources {
    let mut free = node.allocatable.clone();
    for pod in &node.pods {
        subtract(&mut free, &pod.requests);
    }
    free
}

fn fits(asked: &Resources, free: &Resources) -> bool {
    asked.iter().all(|(resource, amount)| *amount <= 0 || *amount <= free.get(resource).copied().unwrap_or(0))
}

fn sum<'a>(of: impl IntoIterator<Item = &'a Resources>) -> Resources {
    let mut total = Resources::new();
    for resources in of {
        add(&mut total, resources);
    }
    total
}

fn add(to: &mut Resources, resources: &Resources) {
    for (resource, amount) in resources {
        match to.get_mut(resource) {
            Some(value) => *value = value.saturating_add(*amount),
            None => drop(to.insert(resource.clone(), *amount)),
        }
    }
}

fn subtract(from: &mut Resources, resources: &Resources) {
    for (resource, amount) in resources {
        match from.get_mut(resource) {
            Some(value) => *value = value.saturating_sub(*amount),
            None => drop(from.insert(resource.clone(), amount.saturating_neg())),
        }
    }
}

#[cfg(test)]
#[path = "solve_tests.rs"]
mod tests;
