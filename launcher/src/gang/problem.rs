//! What a scheduling decision depends on: the nodes with what runs on them, and the gangs that wait. Plain values,
//! built by `snapshot` from watched objects, by tests and by the simulation.

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Amounts by resource name (see `quantity::amount`): `cpu` in thousandths, `memory` in bytes, `pods`,
/// `nvidia.com/gpu` and every other extended resource in units.
pub type Resources = BTreeMap<String, i64>;

/// Who is placed together: the members of a PodGroup, or one pod that belongs to none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GangId {
    Group { namespace: String, name: String },
    Pod { namespace: String, name: String },
}

impl GangId {
    pub fn namespace(&self) -> &str {
        match self {
            GangId::Group { namespace, .. } | GangId::Pod { namespace, .. } => namespace,
        }
    }

    pub fn name(&self) -> &str {
        match self {
            GangId::Group { name, .. } | GangId::Pod { name, .. } => name,
        }
    }
}

impl fmt::Display for GangId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GangId::Group { namespace, name } => write!(f, "gang {namespace}/{name}"),
            GangId::Pod { namespace, name } => write!(f, "pod {namespace}/{name}"),
        }
    }
}

/// A taint of a node that keeps pods away (`NoSchedule`, `NoExecute`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

/// A pod's consent to be placed in spite of a taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    /// Empty matches every key (with `exists`).
    pub key: String,
    pub exists: bool,
    pub value: String,
    /// Empty matches every effect.
    pub effect: String,
}

impl Toleration {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key == taint.key || (self.key.is_empty() && self.exists))
            && (self.exists || self.value == taint.value)
    }
}

/// A pod that already holds its share of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundPod {
    pub requests: Arc<Resources>,
    pub bound_at: Timestamp,
    pub gang: Arc<GangId>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub name: String,
    pub ready: bool,
    /// Cordoned.
    pub unschedulable: bool,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub allocatable: Resources,
    pub pods: Vec<BoundPod>,
}

/// What a pod asks of the node it is placed on.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingPod {
    pub name: String,
    pub uid: String,
    pub requests: Arc<Resources>,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Gang {
    pub id: GangId,
    pub priority: i32,
    /// When it was made: among equal priorities the older goes first.
    pub created: Timestamp,
    /// Since when all its members have been there, waiting.
    pub waiting_since: Timestamp,
    /// How many of its pods must hold a place at the same time.
    pub min_member: usize,
    /// How many of its pods hold one already.
    pub bound: usize,
    /// False for a pod whose label names a PodGroup that does not exist.
    pub group_exists: bool,
    /// In the order in which they are placed.
    pub pods: Vec<Arc<PendingPod>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub now: Timestamp,
    /// How long a gang waits before resources are reserved for it.
    pub reserve_after: SignedDuration,
    /// Sorted by name.
    pub nodes: Vec<Node>,
    pub gangs: Vec<Gang>,
}
