//! Errors of requests in words for people: what is wrong, and what to do next.

use kube::Error;

/// `server` is how the message names the server.
pub(crate) fn explain(error: Error, server: &str) -> anyhow::Error {
    match error {
        Error::Api(status) if status.code == 401 => anyhow::anyhow!(
            "the server {server} does not accept these credentials; `muster up` writes the kubeconfig anew at each start"
        ),
        Error::Api(status) if status.reason.is_empty() => anyhow::anyhow!("from the server: {}", status.message),
        Error::Api(status) if status.reason == "Conflict" && status.message.starts_with("Apply failed") => {
            anyhow::anyhow!("{}; --force-conflicts takes these fields over", status.message)
        }
        Error::Api(status) => anyhow::anyhow!("from the server ({}): {}", status.reason, status.message),
        Error::HyperError(e) => unreachable_server(server, &root(&e)),
        Error::Service(e) => unreachable_server(server, &root(e.as_ref())),
        other => anyhow::Error::new(other),
    }
}

pub(crate) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

fn unreachable_server(server: &str, why: &str) -> anyhow::Error {
    anyhow::anyhow!("cannot reach {server}: {why}; start a server with `muster up`, or name another with --kubeconfig")
}

/// The innermost cause says what happened; those around it say only where.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
