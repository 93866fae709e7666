//! The volumes of a pod and where its containers see them. Pure; files are written by the runtime.

use super::env::{Scope, field, resource_value};
use super::runtime::{Volume, VolumeFile};
use super::supervisor::Mount;
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VolumeError {
    /// May come: tried again.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {what}")]
    Missing { volume: String, what: String },
    #[error(
        "volume \"{volume}\" is of a kind that this node does not have; it has emptyDir, hostPath, configMap, secret, \
         downwardAPI, projected and persistentVolumeClaim"
    )]
    Unsupported { volume: String },
    #[error("hostPath of volume \"{volume}\": {what}")]
    HostPath { volume: String, what: String },
}

const DEFAULT_MODE: i32 = 0o644;
/// How long a token is good for that does not say.
pub(crate) const TOKEN_SECONDS: i64 = 3600;

/// Tokens by (volume, path), fetched before.
pub(crate) type Tokens = BTreeMap<(String, String), String>;

pub(crate) fn resolve(
    volumes: &[core::Volume],
    scope: &Scope<'_>,
    tokens: &Tokens,
) -> Result<BTreeMap<String, Volume>, VolumeError> {
    volumes.iter().map(|volume| Ok((volume.name.clone(), resolve_one(volume, scope, tokens)?))).collect()
}

fn resolve_one(volume: &core::Volume, scope: &Scope<'_>, tokens: &Tokens) -> Result<Volume, VolumeError> {
    let name = &volume.name;
    let namespace = scope.pod.metadata.namespace.clone().unwrap_or_default();
    if volume.empty_dir.is_some() {
        return Ok(Volume::Empty);
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        let claim = claim.claim_name.clone();
        if scope.fetched.claims.contains(&claim) {
            return Ok(Volume::Claim { namespace, name: claim });
        }
        let what = format!("persistentvolumeclaim \"{claim}\" not found");
        return Err(VolumeError::Missing { volume: name.clone(), what });
    }
    if let Some(host) = &volume.host_path {
        return host_path(name, host);
    }
    let mut files = Files { volume: name, list: Vec::new() };
    if let Some(source) = &volume.config_map {
        let data = scope.fetched.config_maps.get(&source.name).and_then(Option::as_ref);
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.add("configmap", &source.name, data, source.items.as_deref(), mode, source.optional)?;
    } else if let Some(source) = &volume.secret {
        let secret = source.secret_name.as_deref().unwrap_or_default();
        let data = scope.fetched.secrets.get(secret).and_then(Option::as_ref);
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.add("secret", secret, data, source.items.as_deref(), mode, source.optional)?;
    } else if let Some(source) = &volume.downward_api {
        files.downward(source.items.as_deref(), source.default_mode.unwrap_or(DEFAULT_MODE), scope)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let data = scope.fetched.config_maps.get(&source.name).and_then(Option::as_ref);
                files.add("configmap", &source.name, data, source.items.as_deref(), mode, source.optional)?;
            }
            if let Some(source) = &source.secret {
                let data = scope.fetched.secrets.get(&source.name).and_then(Option::as_ref);
                files.add("secret", &source.name, data, source.items.as_deref(), mode, source.optional)?;
            }
            if let Some(source) = &source.downward_api {
                files.downward(source.items.as_deref(), mode, scope)?;
            }
            if let Some(source) = &source.service_account_token {
                let token = tokens.get(&(name.clone(), source.path.clone())).cloned().unwrap_or_default();
                files.push(&source.path, token.into_bytes(), 0o600.max(mode));
            }
            if source.cluster_trust_bundle.is_some() {
                return Err(VolumeError::Unsupported { volume: name.clone() });
            }
        }
    } else {
        return Err(VolumeError::Unsupported { volume: name.clone() });
    }
    Ok(Volume::Files(files.list))
}

struct Files<'a> {
    volume: &'a str,
    list: Vec<VolumeFile>,
}

impl Files<'_> {
    fn push(&mut self, path: &str, content: Vec<u8>, mode: i32) {
        let mode = u32::try_from(mode).unwrap_or(0o644);
        self.list.push(VolumeFile { path: PathBuf::from(path), mode, content });
    }

    fn missing(&self, what: String) -> VolumeError {
        VolumeError::Missing { volume: self.volume.to_owned(), what }
    }

    fn add(
        &mut self,
        kind: &str,
        name: &str,
        data: Option<&BTreeMap<String, Vec<u8>>>,
        items: Option<&[core::KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
    ) -> Result<(), VolumeError> {
        let optional = optional == Some(true);
        let Some(data) = data else {
            return if optional { Ok(()) } else { Err(self.missing(format!("{kind} \"{name}\" not found"))) };
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, content) in data {
                self.push(key, content.clone(), mode);
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(content) => self.push(&item.path, content.clone(), item.mode.unwrap_or(mode)),
                None if optional => {}
                None => return Err(self.missing(format!("references non-existent {kind} key: {}", item.key))),
            }
        }
        Ok(())
    }

    fn downward(
        &mut self,
        items: Option<&[core::DownwardAPIVolumeFile]>,
        mode: i32,
        scope: &Scope<'_>,
    ) -> Result<(), VolumeError> {
        for item in items.into_iter().flatten() {
            let value = if let Some(reference) = &item.field_ref {
                field(&reference.field_path, scope)
            } else if let Some(reference) = &item.resource_field_ref {
                let wanted = reference.container_name.as_deref().unwrap_or_default();
                let containers = scope.pod.spec.iter().flat_map(|spec| &spec.containers);
                match { containers }.find(|c| c.name == wanted) {
                    Some(container) => {
                        resource_value(&reference.resource, reference.divisor.as_ref(), container, scope)
                    }
                    None => return Err(self.missing(format!("no container \"{wanted}\""))),
                }
            } else {
                continue;
            };
            let value = value.map_err(|error| self.missing(error.to_string()))?;
            self.push(&item.path, value.into_bytes(), item.mode.unwrap_or(mode));
        }
        Ok(())
    }
}

fn host_path(volume: &str, host: &core::HostPathVolumeSource) -> Result<Volume, VolumeError> {
    let path = PathBuf::from(&host.path);
    let wrong = |what: String| VolumeError::HostPath { volume: volume.to_owned(), what };
    let kind = host.type_.as_deref().unwrap_or_default();
    let make = match kind {
        "DirectoryOrCreate" if !path.exists() => std::fs::create_dir_all(&path),
        "FileOrCreate" if !path.exists() => std::fs::File::create(&path).map(drop),
        // Container runtimes make a folder of a plain hostPath that is missing.
        "" if !path.exists() => std::fs::create_dir_all(&path),
        _ => Ok(()),
    };
    make.map_err(|error| wrong(format!("{}: {error}", path.display())))?;
    let fits = match kind {
        "Directory" | "DirectoryOrCreate" => path.is_dir(),
        "File" | "FileOrCreate" => path.is_file(),
        _ => path.exists(),
    };
    if fits { Ok(Volume::Host(path)) } else { Err(wrong(format!("{} is not a {kind}", path.display()))) }
}

/// Where a container sees the pod's volumes.
pub(crate) fn mounts(
    container: &core::Container,
    places: &BTreeMap<String, PathBuf>,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let place = places.get(&mount.name).ok_or_else(|| format!("volume \"{}\" not found", mount.name))?;
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => path.clone(),
            (_, Some(expression)) => {
                super::env::expand_all(std::slice::from_ref(expression), env).pop().unwrap_or_default()
            }
            _ => String::new(),
        };
        let source = if sub_path.is_empty() { place.clone() } else { below(place, &sub_path)? };
        mounts.push(Mount {
            source,
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only.unwrap_or(false),
        });
    }
    Ok(mounts)
}

/// A path inside a volume, made where it does not exist; links do not lead out of the volume.
fn below(place: &Path, sub_path: &str) -> Result<PathBuf, String> {
    let relative = Path::new(sub_path);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("subPath \"{sub_path}\" must be relative and without '..'"));
    }
    let path = place.join(relative);
    if !path.exists() {
        std::fs::create_dir_all(&path).map_err(|error| format!("subPath \"{sub_path}\": {error}"))?;
    }
    let (real, inside) = (path.canonicalize(), place.canonicalize());
    match (real, inside) {
        (Ok(real), Ok(inside)) if real.starts_with(&inside) => Ok(real),
        _ => Err(format!("subPath \"{sub_path}\" leads out of its volume")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sources::Fetched;
    use super::super::status::Address;
    use super::*;
    use serde_json::json;

    fn check(volume: serde_json::Value) -> Result<Volume, VolumeError> {
        let volume: core::Volume = serde_json::from_value(volume).expect("a volume");
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns",
            "labels": {"a": "1"}}, "spec": {"containers": []}}))
        .expect("a pod");
        let some = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect())
        };
        let fetched = Fetched {
            config_maps: BTreeMap::from([("cm".to_owned(), some(&[("x", "1"), ("y", "2")]))]),
            secrets: BTreeMap::from([("s".to_owned(), some(&[("k", "v")]))]),
            claims: ["claimed".to_owned()].into(),
        };
        let address = Address { host_ip: String::new(), pod_ip: String::new() };
        let scope = Scope { pod: &pod, address: &address, fetched: &fetched, allocatable: &BTreeMap::new() };
        let tokens = Tokens::from([(("v".to_owned(), "token".to_owned()), "jwt".to_owned())]);
        resolve(&[volume], &scope, &tokens).map(|mut all| all.remove("v").expect("the volume"))
    }

    fn files(volume: serde_json::Value) -> Vec<(String, String, u32)> {
        let Ok(Volume::Files(files)) = check(volume) else { panic!("files") };
        files
            .into_iter()
            .map(|f| (f.path.display().to_string(), String::from_utf8(f.content).expect("text"), f.mode))
            .collect()
    }

    fn file(path: &str, content: &str, mode: u32) -> (String, String, u32) {
        (path.to_owned(), content.to_owned(), mode)
    }

    #[test]
    fn objects_become_files() {
        assert_eq!(
            files(json!({"name": "v", "configMap": {"name": "cm"}})),
            [file("x", "1", 0o644), file("y", "2", 0o644)]
        );
        let items = json!({"name": "v", "configMap": {"name": "cm", "defaultMode": 0o400,
            "items": [{"key": "y", "path": "sub/why"}, {"key": "x", "path": "x", "mode": 0o600}]}});
        assert_eq!(files(items), [file("sub/why", "2", 0o400), file("x", "1", 0o600)]);
        assert_eq!(files(json!({"name": "v", "secret": {"secretName": "s"}})), [file("k", "v", 0o644)]);
        let projected = json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "cm", "items": [{"key": "x", "path": "ca"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                                       {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}});
        assert_eq!(
            files(projected),
            [
                file("token", "jwt", 0o644),
                file("ca", "1", 0o644),
                file("namespace", "ns", 0o644),
                file("labels", "a=\"1\"", 0o644)
            ]
        );
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        for (volume, want) in [
            (
                json!({"name": "v", "configMap": {"name": "none"}}),
                "MountVolume.SetUp failed for volume \"v\" : configmap \"none\" not found",
            ),
            (
                json!({"name": "v", "secret": {"secretName": "s", "items": [{"key": "q", "path": "q"}]}}),
                "MountVolume.SetUp failed for volume \"v\" : references non-existent secret key: q",
            ),
            (
                json!({"name": "v", "persistentVolumeClaim": {"claimName": "none"}}),
                "MountVolume.SetUp failed for volume \"v\" : persistentvolumeclaim \"none\" not found",
            ),
        ] {
            assert_eq!(check(volume).expect_err("missing").to_string(), want);
        }
        assert_eq!(
            check(json!({"name": "v", "secret": {"secretName": "none", "optional": true}})),
            Ok(Volume::Files(vec![]))
        );
        assert!(matches!(
            check(json!({"name": "v", "nfs": {"server": "s", "path": "/"}})),
            Err(VolumeError::Unsupported { .. })
        ));
    }

    #[test]
    fn sub_paths_stay_inside_their_volume() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = dir.path().join("volume");
        std::fs::create_dir(&place).expect("made");
        std::os::unix::fs::symlink("/etc", place.join("out")).expect("linked");
        assert!(below(&place, "a/b").is_ok_and(|path| path.is_dir()));
        for bad in ["../x", "/etc", "a/../../x", "out"] {
            assert!(below(&place, bad).is_err(), "{bad}");
        }
    }
}
