//! `muster scale`, by the scale subresource.

use crate::cli::ScaleArgs;
use crate::client::{Connection, JSON, Kinds, is_not_found};
use crate::exit::ExitStatus;
use anyhow::{Result, bail};
use http::Method;
use serde_json::json;

pub(crate) async fn run(args: &ScaleArgs) -> Result<ExitStatus> {
    let connection = Connection::open(&args.target).await?;
    let kinds = Kinds::discover(&connection).await?;
    let body = serde_json::to_vec(&json!({"spec": {"replicas": args.replicas}}))?;
    for (kind, name) in kinds.select_named(&args.what)? {
        let object = kind.object(&connection.namespace, &name);
        let (path, patch) = (format!("{object}/scale"), "application/merge-patch+json");
        match connection.try_send(Method::PATCH, &path, patch, JSON, body.clone()).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {
                // Either the object is missing, which this says, or its kind is none that scales.
                connection.get(&object, JSON).await?;
                bail!("{} cannot be scaled; training jobs can: `muster scale pytorchjob/NAME`", kind.plural);
            }
            Err(error) => return Err(connection.explain(error)),
        }
        println!("{}/{name} scaled to {}", kind.qualified(), args.replicas);
    }
    Ok(ExitStatus::Success)
}
