//! What pods refer to and the node fetches for them: ConfigMaps, Secrets, service account tokens.

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, PostParams};
use std::collections::{BTreeMap, BTreeSet};

/// Objects by name; `None` where there is none.
pub(crate) type Objects = BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>;

/// What was fetched for one pod, all of its namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fetched {
    pub(crate) config_maps: Objects,
    pub(crate) secrets: Objects,
    /// The claims that are there.
    pub(crate) claims: BTreeSet<String>,
}

/// Names that are referred to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) config_maps: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
    pub(crate) claims: BTreeSet<String>,
}

impl Wanted {
    pub(crate) fn by_environment(container: &core::Container) -> Wanted {
        let mut wanted = Wanted::default();
        for from in container.env_from.iter().flatten() {
            wanted.config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            wanted.secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            wanted.config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            wanted.secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
        wanted
    }

    pub(crate) fn by_volumes(volumes: &[core::Volume]) -> Wanted {
        let mut wanted = Wanted::default();
        for volume in volumes {
            wanted.config_maps.extend(volume.config_map.as_ref().map(|v| v.name.clone()));
            wanted.secrets.extend(volume.secret.as_ref().and_then(|v| v.secret_name.clone()));
            wanted.claims.extend(volume.persistent_volume_claim.as_ref().map(|v| v.claim_name.clone()));
            for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
                wanted.config_maps.extend(source.config_map.as_ref().map(|v| v.name.clone()));
                wanted.secrets.extend(source.secret.as_ref().map(|v| v.name.clone()));
            }
        }
        wanted
    }
}

pub(crate) async fn fetch(
    client: &kube::Client,
    namespace: &str,
    wanted: Wanted,
    root_ca: Option<&str>,
) -> Result<Fetched, kube::Error> {
    let mut fetched = Fetched::default();
    let config_maps: Api<core::ConfigMap> = Api::namespaced(client.clone(), namespace);
    for name in wanted.config_maps {
        let mut data = config_maps.get_opt(&name).await?.map(|object| {
            let text = object.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
            let binary = object.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
            text.chain(binary).collect()
        });
        // The controller that publishes it may be slower than the first pod, or not be part of this server.
        if data.is_none() && name == "kube-root-ca.crt" {
            data = root_ca.map(|pem| BTreeMap::from([("ca.crt".to_owned(), pem.as_bytes().to_vec())]));
        }
        fetched.config_maps.insert(name, data);
    }
    let secrets: Api<core::Secret> = Api::namespaced(client.clone(), namespace);
    for name in wanted.secrets {
        let data = secrets
            .get_opt(&name)
            .await?
            .map(|object| object.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect());
        fetched.secrets.insert(name, data);
    }
    let claims: Api<core::PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    for name in wanted.claims {
        if claims.get_opt(&name).await?.is_some() {
            fetched.claims.insert(name);
        }
    }
    Ok(fetched)
}

/// A token for the pod's service account, bound to the pod.
pub(crate) async fn token(
    client: &kube::Client,
    pod: &core::Pod,
    audience: Option<String>,
    seconds: i64,
) -> Result<String, kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or("default".to_owned());
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.into_iter().collect(),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<core::ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer: TokenRequest = accounts.create_subresource("token", &account, &PostParams::default(), &request).await?;
    Ok(answer.status.map(|status| status.token).unwrap_or_default())
}
