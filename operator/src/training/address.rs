//! Where the replicas of a job find each other.

use super::observe::Observed;
use muster_api::training::{Job, types::replica_name};
use std::collections::BTreeMap;
use std::fmt;

/// How replicas are addressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// By the names of their headless services, on the ports of their containers: clusters.
    #[default]
    Dns,
    /// At 127.0.0.1, each on a host port of its own, since all pods share the network of one machine.
    HostPorts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: i32,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

const LOOPBACK: &str = "127.0.0.1";

/// The host ports of a job's replicas, by role and index. A replica's port is kept in its service, which outlives its
/// pods.
pub type HostPorts = BTreeMap<(String, i32), i32>;

/// Looks up the address of any replica of one job.
#[derive(Debug)]
pub struct Addresses<'a> {
    job: &'a Job,
    cluster_domain: Option<&'a str>,
    host_ports: Option<HostPorts>,
}

impl<'a> Addresses<'a> {
    pub fn dns(job: &'a Job, cluster_domain: Option<&'a str>) -> Self {
        Addresses { job, cluster_domain, host_ports: None }
    }

    pub fn host_ports(job: &'a Job, ports: HostPorts) -> Self {
        Addresses { job, cluster_domain: None, host_ports: Some(ports) }
    }

    /// The port that a role's container listens on when it has a network of its own.
    fn container_port(&self, role: &str) -> i32 {
        let kind = self.job.kind;
        let spec = self.job.replica_specs().get(role);
        spec.and_then(|spec| spec.port(kind.container, kind.port_name)).unwrap_or(kind.port)
    }

    /// A replica has an address: always by name, and by host port once it has one.
    pub fn has(&self, role: &str, index: i32) -> bool {
        self.host_ports.is_none() || self.host_port(role, index).is_some()
    }

    /// The host port of a replica, where host ports are used.
    pub fn host_port(&self, role: &str, index: i32) -> Option<i32> {
        self.host_ports.as_ref()?.get(&(role.to_owned(), index)).copied()
    }

    /// The address under the service's bare name, which resolves within the namespace.
    pub fn short(&self, role: &str, index: i32) -> Address {
        match self.host_port(role, index) {
            Some(port) => Address { host: LOOPBACK.to_owned(), port },
            None => Address { host: replica_name(&self.job.name, role, index), port: self.container_port(role) },
        }
    }

    /// The address under the service's name within the cluster.
    pub fn qualified(&self, role: &str, index: i32) -> Address {
        let mut address = self.short(role, index);
        if self.host_ports.is_none() {
            address.host = format!("{}.{}.svc", address.host, self.job.namespace);
            if let Some(domain) = self.cluster_domain {
                address.host = format!("{}.{domain}", address.host);
            }
        }
        address
    }
}

/// The host ports that the job's replicas hold, and ports for those that hold none. A replica whose service is gone
/// takes back the port that its pod uses. `None` for a replica means that no free port is left.
pub(super) fn allocate(observed: &Observed) -> BTreeMap<(String, i32), HeldPort> {
    let port_name = observed.job.kind.port_name;
    let mut held = BTreeMap::new();
    let mut missing = Vec::new();
    for (role, spec) in observed.job.roles() {
        for index in 0..spec.count() {
            let key = (role.to_owned(), index);
            let service = observed.service(role, index).and_then(|service| service.ports.get(port_name));
            let pod = || observed.pod(role, index).and_then(|pod| pod.ports.get(port_name));
            match (service, pod()) {
                (Some(port), _) => {
                    held.insert(key, HeldPort { port: *port, recorded: true });
                }
                (None, Some(port)) => {
                    held.insert(key, HeldPort { port: *port, recorded: false });
                }
                (None, None) => missing.push(key),
            }
        }
    }
    let taken: Vec<i32> = held.values().map(|held| held.port).collect();
    let mut free = observed.free_ports.iter().map(|port| i32::from(*port)).filter(|port| !taken.contains(port));
    for key in missing {
        let Some(port) = free.next() else { break };
        held.insert(key, HeldPort { port, recorded: false });
    }
    held
}

/// A host port, and whether a service keeps it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldPort {
    pub port: i32,
    pub recorded: bool,
}
