//! What every namespace has: the service account `default`, and the root certificate for its pods.

use super::Shared;
use crate::shell::resource::RequestError;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use std::sync::Arc;
use std::time::Duration;

pub(super) const DEFAULT: &str = "default";
pub(super) const ROOT_CA: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";

pub(super) async fn attend(shared: &Arc<Shared>, namespace: &str) -> Result<Option<Duration>, RequestError> {
    let namespaces: Api<Namespace> = Api::all(shared.client.clone());
    let Some(found) = namespaces.get_metadata_opt(namespace).await? else { return Ok(None) };
    if found.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    service_account(shared, namespace).await?;
    if let Some(certificate) = &shared.config.root_ca {
        root_certificate(shared, namespace, certificate).await?;
    }
    Ok(None)
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// Somebody else may have made the object meanwhile, or the namespace may be on its way out.
fn settled<T>(outcome: Result<T, kube::Error>) -> Result<(), RequestError> {
    match outcome.map_err(RequestError::from) {
        Ok(_) | Err(RequestError::AlreadyExists(_) | RequestError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn service_account(shared: &Shared, namespace: &str) -> Result<(), RequestError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(shared.client.clone(), namespace);
    if accounts.get_metadata_opt(DEFAULT).await?.is_some() {
        return Ok(());
    }
    let account = ServiceAccount { metadata: named(DEFAULT), ..ServiceAccount::default() };
    settled(accounts.create(&PostParams::default(), &account).await)
}

async fn root_certificate(shared: &Shared, namespace: &str, certificate: &str) -> Result<(), RequestError> {
    let maps: Api<ConfigMap> = Api::namespaced(shared.client.clone(), namespace);
    let data = [(KEY.to_owned(), certificate.to_owned())];
    match maps.get_opt(ROOT_CA).await? {
        None => {
            let map = ConfigMap { metadata: named(ROOT_CA), data: Some(data.into()), ..ConfigMap::default() };
            settled(maps.create(&PostParams::default(), &map).await)
        }
        Some(map) if map.data == Some(data.clone().into()) => Ok(()),
        Some(mut map) => {
            map.data = Some(data.into());
            settled(maps.replace(ROOT_CA, &PostParams::default(), &map).await)
        }
    }
}
