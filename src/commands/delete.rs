//! `muster delete`

use crate::cli::DeleteArgs;
use crate::client::{Connection, JSON, Kind, Kinds, is_not_found, read_manifests, with_query};
use crate::commands::apply::namespace_of;
use crate::exit::ExitStatus;
use anyhow::{Result, bail};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// One object, and what was deleted of it: its uid, for another may take its name.
struct Victim {
    kind: Kind,
    namespace: String,
    name: String,
}

pub(crate) async fn run(args: &DeleteArgs) -> Result<ExitStatus> {
    let connection = Connection::open(&args.target).await?;
    let kinds = Kinds::discover(&connection).await?;
    let victims = choose(&connection, &kinds, args).await?;
    let mut failed = false;
    let mut going = Vec::new();
    for victim in victims {
        let path = victim.kind.object(&victim.namespace, &victim.name);
        let body = serde_json::to_vec(&json!({"propagationPolicy": "Background"}))?;
        match connection.try_send(Method::DELETE, &path, JSON, JSON, body).await {
            Ok(answer) => {
                println!("{} \"{}\" deleted", victim.kind.qualified(), victim.name);
                // The answer is the object while it is still there, else a Status with its uid.
                let uid = answer.pointer("/metadata/uid").or(answer.pointer("/details/uid"));
                going.push((path, uid.and_then(Value::as_str).unwrap_or_default().to_owned()));
            }
            Err(error) if args.ignore_not_found && is_not_found(&error) => {}
            Err(error) => {
                eprintln!("error: {:#}", connection.explain(error));
                failed = true;
            }
        }
    }
    if !args.no_wait {
        for (path, uid) in going {
            while connection.find(&path).await?.is_some_and(|o| uid.is_empty() || o["metadata"]["uid"] == uid.as_str())
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    Ok(if failed { ExitStatus::Failure } else { ExitStatus::Success })
}

async fn choose(connection: &Connection, kinds: &Kinds, args: &DeleteArgs) -> Result<Vec<Victim>> {
    let mut victims = Vec::new();
    if !args.filename.is_empty() {
        for manifest in read_manifests(&args.filename)? {
            victims.push(Victim {
                kind: kinds.of(manifest.text("/apiVersion"), manifest.text("/kind"))?.clone(),
                namespace: namespace_of(&manifest, connection, &args.target)?,
                name: manifest.text("/metadata/name").to_owned(),
            });
        }
        return Ok(victims);
    }
    for selected in kinds.select(&args.what)? {
        let namespace = connection.namespace.clone();
        match selected.name {
            Some(name) => victims.push(Victim { kind: selected.kind, namespace, name }),
            None if args.all || args.selector.is_some() => {
                let path = with_query(
                    &selected.kind.collection(Some(&namespace)),
                    &[("labelSelector", args.selector.as_deref())],
                );
                let list = connection.get(&path, JSON).await?;
                for item in list["items"].as_array().into_iter().flatten() {
                    let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    victims.push(Victim { kind: selected.kind.clone(), namespace: namespace.clone(), name });
                }
            }
            None => bail!("name an object ({}/NAME), or say --selector or --all", selected.kind.singular),
        }
    }
    if victims.is_empty() {
        eprintln!("No resources found");
    }
    Ok(victims)
}
