//! `muster version`

use crate::cli::{OutputFormat, VersionArgs};
use crate::client::{Connection, JSON};
use crate::exit::ExitStatus;
use anyhow::Result;
use serde_json::json;

pub(crate) async fn run(args: &VersionArgs) -> Result<ExitStatus> {
    let mut version = json!({"muster": env!("CARGO_PKG_VERSION")});
    // Without a server there is still a version to show.
    if !args.client
        && let Ok(connection) = Connection::open(&args.target).await
        && let Ok(server) = connection.get("/version", JSON).await
    {
        version["server"] = server["gitVersion"].clone();
    }
    match args.output {
        Some(OutputFormat::Json) => println!("{}", serde_json::to_string_pretty(&version)?),
        Some(OutputFormat::Yaml) => print!("{}", serde_saphyr::to_string(&version)?),
        _ => {
            println!("muster {}", env!("CARGO_PKG_VERSION"));
            match version["server"].as_str() {
                Some(server) => println!("server {server}"),
                None if args.client => {}
                None => println!("server: none reached"),
            }
        }
    }
    Ok(ExitStatus::Success)
}
