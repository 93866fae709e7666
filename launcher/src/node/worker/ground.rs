//! What containers stand on before they start: the pod's volumes.

use super::{Shared, later};
use crate::node::env;
use crate::node::runtime::PodRecord;
use crate::node::sources::{Wanted, fetch, token};
use crate::node::volumes::{self, TOKEN_SECONDS, Tokens, VolumeError};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The places of the pod's volumes, and when its tokens have to be renewed; or an event's message and reason. A pod
/// that has begun keeps its claims, even where they have been deleted since.
pub(super) async fn prepare(
    shared: &Shared,
    pod: &core::Pod,
    record: PodRecord,
    begun: bool,
) -> Result<(BTreeMap<String, PathBuf>, Option<Timestamp>), (String, &'static str)> {
    let mount = |error: String| (error, "FailedMount");
    let list = pod.spec.as_ref().and_then(|s| s.volumes.clone()).unwrap_or_default();
    let root_ca = shared.config.root_ca.as_deref();
    let mut fetched = fetch(&shared.client, &record.namespace, Wanted::by_volumes(&list), root_ca)
        .await
        .map_err(|error| mount(error.to_string()))?;
    if begun {
        let claims = list.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref());
        fetched.claims.extend(claims.map(|claim| claim.claim_name.clone()));
    }
    let mut tokens = Tokens::new();
    let mut renew_at: Option<Timestamp> = None;
    for volume in &list {
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            let Some(source) = &source.service_account_token else { continue };
            let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
            let token = token(&shared.client, pod, source.audience.clone(), seconds).await.map_err(|error| {
                mount(VolumeError::Missing { volume: volume.name.clone(), what: error.to_string() }.to_string())
            })?;
            tokens.insert((volume.name.clone(), source.path.clone()), token);
            let renew = later(shared.config.clock.now(), SignedDuration::from_secs(seconds / 5 * 4));
            renew_at = Some(renew_at.map_or(renew, |at| at.min(renew)));
        }
    }
    let scope = env::Scope { pod, address: &shared.address, fetched: &fetched, allocatable: &shared.allocatable };
    let volumes = volumes::resolve(&list, &scope, &tokens).map_err(|error| mount(error.to_string()))?;
    let places = shared.config.runtime.prepare(record, volumes).await.map_err(|error| mount(error.to_string()))?;
    Ok((places, renew_at))
}
