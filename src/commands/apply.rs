//! `muster apply`: server-side apply, so that what another manager set stays as it is.

use crate::cli::{ApplyArgs, Target};
use crate::client::{Connection, JSON, Kinds, Manifest, read_manifests, with_query};
use crate::exit::ExitStatus;
use crate::output;
use anyhow::{Context, Result, bail};
use http::Method;
use serde_json::Value;

const APPLY: &str = "application/apply-patch+yaml";
pub(crate) const FIELD_MANAGER: &str = "muster";

pub(crate) async fn run(args: &ApplyArgs) -> Result<ExitStatus> {
    let manifests = read_manifests(&args.filename)?;
    let connection = Connection::open(&args.target).await?;
    let mut kinds = Kinds::discover(&connection).await?;
    let mut failed = false;
    for manifest in &manifests {
        match apply(&connection, &mut kinds, manifest, args).await {
            Ok(line) => println!("{line}"),
            // The others may still be applied, as kubectl does.
            Err(error) => {
                eprintln!("error: {}: {error:#}", manifest.source);
                failed = true;
            }
        }
    }
    Ok(if failed { ExitStatus::Failure } else { ExitStatus::Success })
}

async fn apply(connection: &Connection, kinds: &mut Kinds, manifest: &Manifest, args: &ApplyArgs) -> Result<String> {
    let (api_version, kind) = (manifest.text("/apiVersion"), manifest.text("/kind"));
    if kinds.of(api_version, kind).is_err() {
        // A definition applied a moment ago brings its kind with it.
        *kinds = Kinds::discover(connection).await?;
    }
    let kind = kinds.of(api_version, kind)?;
    let name = manifest.text("/metadata/name");
    if name.is_empty() {
        bail!("the {} has no metadata.name; create it with `kubectl create`", kind.kind);
    }
    let namespace = namespace_of(manifest, connection, &args.target)?;
    let path = kind.object(&namespace, name);
    let before = connection.find(&path).await?;
    let dry_run = args.dry_run.then_some("All");
    let query = [
        ("fieldManager", Some(FIELD_MANAGER)),
        ("fieldValidation", Some("Strict")),
        ("force", args.force_conflicts.then_some("true")),
        ("dryRun", dry_run),
    ];
    let body = serde_json::to_vec(&manifest.object)?;
    let after = connection.send(Method::PATCH, &with_query(&path, &query), APPLY, JSON, body).await?;
    if let Some(format) = args.output {
        return output::object(&after, kind, format);
    }
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    let what = match &before {
        None => "created",
        Some(before) if version(before) == version(&after) => "unchanged",
        Some(_) => "configured",
    };
    let note = if args.dry_run { " (dry run)" } else { "" };
    Ok(format!("{} {what}{note}", output::name(&after, kind)))
}

/// The manifest's namespace; one that is typed must not contradict it.
pub(crate) fn namespace_of(manifest: &Manifest, connection: &Connection, target: &Target) -> Result<String> {
    let own = manifest.text("/metadata/namespace");
    match &target.namespace {
        Some(typed) if !own.is_empty() && own != typed => {
            bail!("the object's namespace is {own:?}, not {typed:?} as --namespace says")
        }
        _ if own.is_empty() => Ok(connection.namespace.clone()),
        _ => Ok(own.to_owned()),
    }
}

/// Creates the object of a manifest; the answer is the object as it is stored.
pub(crate) async fn create(
    connection: &Connection,
    kinds: &Kinds,
    manifest: &Manifest,
    target: &Target,
) -> Result<Value> {
    let kind = kinds.of(manifest.text("/apiVersion"), manifest.text("/kind"))?;
    let namespace = namespace_of(manifest, connection, target)?;
    let query = [("fieldManager", Some(FIELD_MANAGER)), ("fieldValidation", Some("Strict"))];
    let path = with_query(&kind.collection(Some(&namespace)), &query);
    connection
        .send(Method::POST, &path, JSON, JSON, serde_json::to_vec(&manifest.object)?)
        .await
        .with_context(|| format!("{} of {}", kind.kind, manifest.source))
}
