//! What the environment says about this process: the only place that reads it.
//!
//! The names are upstream's (RANK, WORLD_SIZE, PET_*) and two of Muster's own, which carry what upstream has no
//! name for. Without them the process trains alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use muster_rendezvous::quorum::WorldSize;

/// HOST:PORT of the rendezvous. Since 0.1.
pub const MUSTER_RENDEZVOUS: &str = "MUSTER_RENDEZVOUS";
/// The token by which the process speaks for its job. Since 0.1.
pub const MUSTER_JOB_TOKEN: &str = "MUSTER_JOB_TOKEN";
/// A filter for the log, as `info` or `muster_worker=debug`. Since 0.1.
pub const MUSTER_LOG: &str = "MUSTER_LOG";
/// The rank of a pod of a PyTorchJob with a Master; upstream's.
pub const RANK: &str = "RANK";
/// As many ranks as the job has processes; upstream's.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// The number of pods, or MIN:MAX for an elastic job; upstream's.
pub const PET_NNODES: &str = "PET_NNODES";
/// The pod's place among them; upstream's.
pub const PET_NODE_RANK: &str = "PET_NODE_RANK";
/// The pod's name.
pub const HOSTNAME: &str = "HOSTNAME";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    #[error("{name} is {value:?}, which is not {expected}")]
    Value { name: &'static str, value: String, expected: &'static str },
    #[error("the job has {world} ranks, but {missing} is not set, so they cannot find each other")]
    Unreachable { world: u32, missing: &'static str },
}

/// Where the ranks of the job meet.
#[derive(Clone, PartialEq, Eq)]
pub struct Rendezvous {
    pub server: String,
    pub job_token: String,
}

impl std::fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rendezvous({})", self.server)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// None: train alone.
    pub rendezvous: Option<Rendezvous>,
    pub size: WorldSize,
    pub rank_hint: Option<u32>,
    pub host: String,
    pub log_filter: Option<String>,
    cache: Option<PathBuf>,
}

impl Environment {
    /// Reads the environment of this process.
    pub fn read() -> Result<Environment, EnvError> {
        Environment::of(
            &std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect(),
        )
    }

    /// What a set of variables says.
    pub fn of(variables: &BTreeMap<String, String>) -> Result<Environment, EnvError> {
        let get = |name: &str| variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        let number = |name: &'static str| {
            let parse = |value: &str| {
                value.parse::<u32>().map_err(|_| EnvError::Value { name, value: value.into(), expected: "a number" })
            };
            get(name).map(parse).transpose()
        };

        // Pods are counted, since each runs one process of ours; WORLD_SIZE also counts the processes of a pod
        // that torchrun would start.
        let size = match get(PET_NNODES) {
            Some(nodes) => nodes_of(nodes)?,
            None => WorldSize::fixed(number(WORLD_SIZE)?.unwrap_or(1)),
        };
        let rank_hint = match number(PET_NODE_RANK)? {
            Some(rank) => Some(rank),
            None => number(RANK)?,
        };
        let rendezvous = match (get(MUSTER_RENDEZVOUS), get(MUSTER_JOB_TOKEN)) {
            (Some(server), Some(token)) => Some(Rendezvous { server: server.into(), job_token: token.into() }),
            (server, _) if size.max > 1 => {
                let missing = if server.is_none() { MUSTER_RENDEZVOUS } else { MUSTER_JOB_TOKEN };
                return Err(EnvError::Unreachable { world: size.max, missing });
            }
            _ => None,
        };
        let cache = get("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| get("HOME").map(|home| PathBuf::from(home).join(".cache")));
        Ok(Environment {
            rendezvous,
            size,
            rank_hint,
            host: get(HOSTNAME).unwrap_or("localhost").into(),
            log_filter: get(MUSTER_LOG).map(str::to_owned),
            cache: cache.map(|cache| cache.join("muster")),
        })
    }

    /// Where `make data` puts a data set.
    pub fn cached(&self, name: &str) -> Option<PathBuf> {
        self.cache.as_ref().map(|cache| cache.join(name))
    }
}

fn nodes_of(value: &str) -> Result<WorldSize, EnvError> {
    let wrong = || EnvError::Value { name: PET_NNODES, value: value.into(), expected: "a number or MIN:MAX" };
    let (min, max) = value.split_once(':').unwrap_or((value, value));
    let (min, max) = (min.parse().map_err(|_| wrong())?, max.parse().map_err(|_| wrong())?);
    if min == 0 || min > max {
        return Err(wrong());
    }
    Ok(WorldSize { min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Environment, EnvError> {
        Environment::of(&variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    type Variables = &'static [(&'static str, &'static str)];

    const MEET: [(&str, &str); 2] = [("MUSTER_RENDEZVOUS", "127.0.0.1:4"), ("MUSTER_JOB_TOKEN", "t")];

    #[test]
    fn an_empty_environment_trains_alone() {
        let env = of(&[]).unwrap();
        assert_eq!((env.rendezvous, env.size, env.rank_hint), (None, WorldSize::fixed(1), None));
    }

    #[test]
    fn the_world_is_counted_in_pods() {
        let table: [(Variables, WorldSize, Option<u32>); 4] = [
            (&[("WORLD_SIZE", "2"), ("RANK", "1")], WorldSize::fixed(2), Some(1)),
            (&[("WORLD_SIZE", "8"), ("PET_NNODES", "4"), ("PET_NODE_RANK", "3")], WorldSize::fixed(4), Some(3)),
            (&[("PET_NNODES", "1:4")], WorldSize { min: 1, max: 4 }, None),
            (&[("PET_NNODES", "2:4"), ("RANK", "")], WorldSize { min: 2, max: 4 }, None),
        ];
        for (variables, size, hint) in table {
            let env = of(&[variables, &MEET].concat()).unwrap();
            assert_eq!((env.size, env.rank_hint), (size, hint), "{variables:?}");
        }
    }

    #[test]
    fn what_cannot_work_is_said() {
        let table: [(Variables, &str); 4] = [
            (
                &[("WORLD_SIZE", "2")],
                "the job has 2 ranks, but MUSTER_RENDEZVOUS is not set, so they cannot find each other",
            ),
            (&[("WORLD_SIZE", "x")], "WORLD_SIZE is \"x\", which is not a number"),
            (&[("PET_NNODES", "4:2")], "PET_NNODES is \"4:2\", which is not a number or MIN:MAX"),
            (&[("RANK", "-1")], "RANK is \"-1\", which is not a number"),
        ];
        for (variables, message) in table {
            assert_eq!(of(variables).unwrap_err().to_string(), message);
        }
    }
}
