//! Why a gang waits. One value that the pods' condition, the events and the logs all render.

use super::problem::{GangId, Resources};
use crate::quantity::render;
use std::collections::BTreeMap;
use std::fmt;

/// One resource that does not suffice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    pub resource: String,
    pub asked: i64,
    pub free: i64,
    /// What there is when nothing else runs.
    pub total: i64,
}

impl Shortfall {
    pub fn missing(&self) -> i64 {
        self.asked - self.free
    }

    /// No amount of waiting helps.
    pub fn exceeds_total(&self) -> bool {
        self.asked > self.total
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.resource;
        write!(
            f,
            "Insufficient {r} (asks for {}, {} free, {} short",
            render(r, self.asked),
            render(r, self.free.max(0)),
            render(r, self.asked - self.free.max(0))
        )?;
        if self.exceeds_total() {
            write!(f, "; there is no more than {} in all", render(r, self.total))?;
        }
        f.write_str(")")
    }
}

/// Why a node takes no pod of the gang, whatever is free on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    NotReady,
    Cordoned,
    Taint { key: String, value: String },
    Selector,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotReady => f.write_str("node(s) were not ready"),
            Refusal::Cordoned => f.write_str("node(s) were unschedulable"),
            Refusal::Taint { key, value } => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Refusal::Selector => f.write_str("node(s) didn't match the pod's node selector"),
        }
    }
}

/// The node where the first pod that found no place lacks least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closest {
    pub node: String,
    pub short: Vec<Shortfall>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The pod's label names a PodGroup that does not exist.
    GroupMissing {
        group: String,
    },
    /// Fewer pods exist than must start together.
    MembersMissing {
        have: usize,
        need: usize,
    },
    NoNodes,
    /// Every node refuses the gang's pods.
    Refused {
        refusals: BTreeMap<Refusal, usize>,
    },
    Insufficient {
        /// Pods that must find a place at once, and how many of them did.
        pods: usize,
        placed: usize,
        refusals: BTreeMap<Refusal, usize>,
        /// Over all nodes that accept the pods; empty when it is only fragmentation.
        short: Vec<Shortfall>,
        closest: Closest,
    },
    /// It would fit, but what it would take is held for a gang that has waited long.
    Reserved {
        holder: GangId,
    },
}

/// What of a reason is worth telling anew: its kind and the resources it names, without the amounts, which change
/// with every pod that ends elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonKey(String);

impl ReasonKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Reason {
    pub fn key(&self) -> ReasonKey {
        ReasonKey(match self {
            Reason::GroupMissing { group } => format!("group {group}"),
            Reason::MembersMissing { need, .. } => format!("members {need}"),
            Reason::NoNodes => "no nodes".to_owned(),
            Reason::Refused { refusals } => format!("refused {:?}", refusals.keys().collect::<Vec<_>>()),
            Reason::Insufficient { pods, refusals, short, .. } => format!(
                "insufficient for {pods} {:?} {:?}",
                short.iter().map(|s| (&s.resource, s.exceeds_total())).collect::<Vec<_>>(),
                refusals.keys().collect::<Vec<_>>()
            ),
            Reason::Reserved { holder } => format!("reserved {holder}"),
        })
    }
}

fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(", ")
}

fn counted(refusals: &BTreeMap<Refusal, usize>) -> impl Iterator<Item = String> + '_ {
    refusals.iter().map(|(refusal, count)| format!("{count} {refusal}"))
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::GroupMissing { group } => write!(f, "PodGroup \"{group}\" does not exist"),
            Reason::MembersMissing { have, need } => {
                write!(f, "{have} of the {need} pods that start together exist so far")
            }
            Reason::NoNodes => f.write_str("no nodes available to schedule pods"),
            Reason::Refused { refusals } => {
                let nodes: usize = refusals.values().sum();
                write!(f, "0/{nodes} nodes are available: {}", join(counted(refusals)))
            }
            Reason::Insufficient { pods, placed, refusals, short, closest } => {
                if *pods > 1 {
                    write!(f, "{placed} of {pods} pods that start together found a place: ")?;
                }
                if short.is_empty() {
                    f.write_str("enough is free in all, but not on one node")?;
                } else {
                    f.write_str(&join(short))?;
                }
                if !refusals.is_empty() {
                    write!(f, ", {}", join(counted(refusals)))?;
                }
                write!(f, "; node {} came closest", closest.node)?;
                if *pods > 1 || short.is_empty() {
                    write!(f, ", for the next pod: {}", join(&closest.short))?;
                }
                Ok(())
            }
            Reason::Reserved { holder } => {
                write!(f, "what it asks for is reserved for {holder}, which has waited longer")
            }
        }
    }
}

/// What of `asked` is not covered by `free`.
pub(super) fn shortfalls(asked: &Resources, free: &Resources, total: &Resources) -> Vec<Shortfall> {
    asked
        .iter()
        .filter(|(_, amount)| **amount > 0)
        .map(|(resource, &asked)| Shortfall {
            resource: resource.clone(),
            asked,
            free: free.get(resource).copied().unwrap_or(0),
            total: total.get(resource).copied().unwrap_or(0),
        })
        .filter(|s| s.missing() > 0)
        .collect()
}
