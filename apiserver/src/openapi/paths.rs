//! The paths of a document: what can be asked of a kind, with the parameters that clients look for.

use super::Kind;
use super::models::list_name;
use serde_json::{Map, Value, json};

/// Adds all paths of a kind.
pub(super) fn add(paths: &mut Map<String, Value>, kind: &Kind<'_>, model: &str) {
    let base = format!("/{}", super::place(kind.group, kind.version));
    let collection = if kind.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{base}/{}", kind.plural)
    };
    let list = list_name(model, kind.list_kind);
    let mut whole = Path::new(kind, kind.namespaced, false);
    whole.add("list", "get", "list", &list);
    whole.add("create", "post", "post", model);
    whole.add("deletecollection", "delete", "deletecollection", STATUS);
    whole.insert(paths, collection.clone());

    let mut item = Path::new(kind, kind.namespaced, true);
    item.add("get", "get", "get", model);
    item.add("update", "put", "put", model);
    item.add("patch", "patch", "patch", model);
    item.add("delete", "delete", "delete", STATUS);
    item.insert(paths, format!("{collection}/{{name}}"));

    if kind.namespaced {
        let mut everywhere = Path::new(kind, false, false);
        everywhere.add("list", "get", "list", &list);
        everywhere.insert(paths, format!("{base}/{}", kind.plural));
    }
    for name in kind.subresources.iter().filter(|name| matches!(name.as_str(), "status" | "scale")) {
        let (model, gvk) = match name.as_str() {
            "scale" => (SCALE, json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})),
            _ => (model, gvk(kind)),
        };
        let mut place = Path::new(kind, kind.namespaced, true);
        place.gvk = gvk;
        place.add("get", "get", "get", model);
        place.add("update", "put", "put", model);
        place.add("patch", "patch", "patch", model);
        place.insert(paths, format!("{collection}/{{name}}/{name}"));
    }
}

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

fn gvk(kind: &Kind<'_>) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

struct Path<'k> {
    kind: &'k Kind<'k>,
    gvk: Value,
    operations: Map<String, Value>,
    parameters: Vec<Value>,
}

impl<'k> Path<'k> {
    fn new(kind: &'k Kind<'k>, namespace: bool, name: bool) -> Self {
        let in_path = |name: &str, words: &str| {
            json!({"name": name, "in": "path", "required": true, "description": words,
                "schema": {"type": "string", "uniqueItems": true}})
        };
        let mut parameters = Vec::new();
        if name {
            parameters.push(in_path("name", "Name of the object."));
        }
        if namespace {
            parameters.push(in_path("namespace", "Namespace of the object."));
        }
        parameters.push(query("pretty", "string", "If true, the answer is indented."));
        Path { kind, gvk: gvk(kind), operations: Map::new(), parameters }
    }

    /// An operation, where the kind has the verb.
    fn add(&mut self, verb: &str, method: &str, action: &str, answer: &str) {
        if !self.kind.verbs.iter().any(|has| has == verb) {
            return;
        }
        let schema = |model: &str| json!({"schema": {"$ref": format!("#/components/schemas/{model}")}});
        let content = |model: &str| json!({"application/json": schema(model), "application/yaml": schema(model)});
        let mut operation = json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self.gvk,
            "parameters": parameters(action),
            "responses": {"200": {"description": "OK", "content": content(answer)}},
        });
        match action {
            "post" | "put" => operation["requestBody"] = json!({"required": true, "content": content(answer)}),
            "delete" | "deletecollection" => operation["requestBody"] = json!({"content": content(DELETE_OPTIONS)}),
            "patch" => {
                let body = json!({"schema": {"type": "object"}});
                let mut kinds =
                    vec!["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
                if self.kind.custom.is_none() {
                    kinds.push("application/strategic-merge-patch+json");
                }
                let content: Map<String, Value> =
                    kinds.into_iter().map(|kind| (kind.to_owned(), body.clone())).collect();
                operation["requestBody"] = json!({"required": true, "content": content});
            }
            _ => {}
        }
        self.operations.insert(method.to_owned(), operation);
    }

    fn insert(mut self, paths: &mut Map<String, Value>, path: String) {
        if self.operations.is_empty() {
            return;
        }
        self.operations.insert("parameters".to_owned(), Value::Array(self.parameters));
        paths.insert(path, Value::Object(self.operations));
    }
}

fn query(name: &str, ty: &str, words: &str) -> Value {
    json!({"name": name, "in": "query", "description": words, "schema": {"type": ty, "uniqueItems": true}})
}

fn parameters(action: &str) -> Vec<Value> {
    let writes = || {
        vec![
            query("dryRun", "string", "With All nothing is stored."),
            query("fieldManager", "string", "Who makes these changes."),
            query(
                "fieldValidation",
                "string",
                "What is done about unknown and repeated fields: Ignore, Warn or Strict.",
            ),
        ]
    };
    let lists = || {
        vec![
            query("continue", "string", "Where to go on with a list that was cut off."),
            query("fieldSelector", "string", "Which objects, by their fields."),
            query("labelSelector", "string", "Which objects, by their labels."),
            query("limit", "integer", "How many objects at most."),
            query("resourceVersion", "string", "The state of the server that is asked for."),
            query("resourceVersionMatch", "string", "How resourceVersion is meant."),
            query("timeoutSeconds", "integer", "When to end a call that goes on."),
        ]
    };
    let deletes = || {
        vec![
            query("dryRun", "string", "With All nothing is deleted."),
            query("gracePeriodSeconds", "integer", "How long the object may take to end."),
            query("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
        ]
    };
    match action {
        "post" | "put" => writes(),
        "patch" => {
            let mut all = writes();
            all.push(query("force", "boolean", "An apply takes fields from other managers."));
            all
        }
        "list" => {
            let mut all = lists();
            all.push(query("allowWatchBookmarks", "boolean", "A watch sends bookmarks."));
            all.push(query("sendInitialEvents", "boolean", "A watch begins with what there is."));
            all.push(query("watch", "boolean", "Watch instead of list."));
            all
        }
        "delete" => deletes(),
        "deletecollection" => {
            deletes().into_iter().chain(lists().into_iter().filter(|p| p["name"] != "dryRun")).collect()
        }
        _ => Vec::new(),
    }
}
