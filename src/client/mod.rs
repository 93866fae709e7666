//! How client commands speak to a server: the connection, the kinds it serves, the words for what goes wrong.

mod error;
mod kinds;
mod manifests;

pub(crate) use error::{explain, is_not_found};
pub(crate) use kinds::{Kind, Kinds, Selected};
pub(crate) use manifests::{Manifest, read as read_manifests};

use crate::cli::Target;
use crate::kubeconfig;
use anyhow::{Context, Result};
use futures::AsyncBufRead;
use http::{Method, Request, header};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

pub(crate) const JSON: &str = "application/json";
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// A server and the namespace that is meant where none is given.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: kube::Client,
    pub(crate) namespace: String,
    /// How errors name the server.
    server: String,
}

impl Connection {
    /// The server of the kubeconfig that the flags, the environment or `muster up` name.
    pub(crate) async fn open(target: &Target) -> Result<Connection> {
        let path = kubeconfig::locate(target.kubeconfig.as_deref())?;
        let file = Kubeconfig::read_from(&path).with_context(|| format!("kubeconfig {}", path.display()))?;
        let options = KubeConfigOptions { context: target.context.clone(), ..Default::default() };
        let mut config = kube::Config::from_custom_kubeconfig(file, &options)
            .await
            .with_context(|| format!("kubeconfig {}", path.display()))?;
        // Logs and watches may be silent for as long as they like.
        config.read_timeout = None;
        config.connect_timeout = Some(std::time::Duration::from_secs(10));
        let server = format!("{} of {}", config.cluster_url.to_string().trim_end_matches('/'), path.display());
        let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = kube::Client::try_from(config).with_context(|| format!("kubeconfig {}", path.display()))?;
        Ok(Connection { client, namespace, server })
    }

    /// A server of this process.
    pub(crate) fn embedded(client: kube::Client, namespace: Option<&str>) -> Connection {
        Connection {
            client,
            namespace: namespace.unwrap_or("default").to_owned(),
            server: "the server in this process".to_owned(),
        }
    }

    /// One request with a JSON answer, or a Status as an error.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        accept: &str,
        body: Vec<u8>,
    ) -> Result<Value> {
        self.try_send(method, path, content_type, accept, body).await.map_err(|e| self.explain(e))
    }

    /// As `send`, with the error as it came.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        accept: &str,
        body: Vec<u8>,
    ) -> Result<Value, kube::Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, accept)
            .body(body)
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    pub(crate) async fn get(&self, path: &str, accept: &str) -> Result<Value> {
        self.send(Method::GET, path, JSON, accept, Vec::new()).await
    }

    /// A `get` that answers None where there is nothing.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.try_send(Method::GET, path, JSON, JSON, Vec::new()).await {
            Ok(value) => Ok(Some(value)),
            Err(e) if is_not_found(&e) => Ok(None),
            Err(e) => Err(self.explain(e)),
        }
    }

    /// An answer that is read as it comes: a watch, a log.
    pub(crate) async fn stream(&self, path: &str, accept: &str) -> Result<impl AsyncBufRead + use<>, kube::Error> {
        let request =
            Request::get(path).header(header::ACCEPT, accept).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request_stream(request).await
    }

    pub(crate) fn explain(&self, error: kube::Error) -> anyhow::Error {
        explain(error, &self.server)
    }
}

/// Query parameters behind a path.
pub(crate) fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut out = path.to_owned();
    let mut separator = if path.contains('?') { '&' } else { '?' };
    for (name, value) in parameters.iter().filter_map(|(name, value)| value.map(|value| (name, value))) {
        out.push(separator);
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        separator = '&';
    }
    out
}
