//! `muster scale`, by the scale subresource.

use crate::cli::ScaleArgs;
use crate::client::{Connection, JSON, Kinds};
use crate::exit::ExitStatus;
use anyhow::Result;
use http::Method;
use serde_json::json;

pub(crate) async fn run(args: &ScaleArgs) -> Result<ExitStatus> {
    let connection = Connection::open(&args.target).await?;
    let kinds = Kinds::discover(&connection).await?;
    let body = serde_json::to_vec(&json!({"spec": {"replicas": args.replicas}}))?;
    for (kind, name) in kinds.select_named(&args.what)? {
        let path = format!("{}/scale", kind.object(&connection.namespace, &name));
        connection.send(Method::PATCH, &path, "application/merge-patch+json", JSON, body.clone()).await?;
        println!("{}/{name} scaled to {}", kind.qualified(), args.replicas);
    }
    Ok(ExitStatus::Success)
}
