//! The schemas of a document: those of built-in kinds as the typed API describes them, completed by what is known of
//! their lists and values; those of custom kinds as their definitions have them.

use super::Kind;
use crate::schema::{self, ListKind};
use k8s_openapi::Resource;
use k8s_openapi::api::{
    admissionregistration::v1 as admissionregistration, apps::v1 as apps, authentication::v1 as authentication,
    authorization::v1 as authorization, autoscaling::v1 as autoscaling_v1, autoscaling::v2 as autoscaling,
    batch::v1 as batch, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    events::v1 as events, networking::v1 as networking, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const REFERENCE: &str = "#/components/schemas/";

/// Schemas by the name of their model.
pub(super) struct Models {
    generator: SchemaGenerator,
    own: Map<String, Value>,
    /// Models that are kinds, with their group, version and kind.
    kinds: Vec<(String, Value)>,
}

impl Default for Models {
    fn default() -> Self {
        let mut generator = SchemaGenerator::new(SchemaSettings::openapi3());
        generator.subschema_for::<meta::ObjectMeta>();
        generator.subschema_for::<meta::ListMeta>();
        generator.subschema_for::<meta::DeleteOptions>();
        generator.subschema_for::<meta::Status>();
        Models { generator, own: Map::new(), kinds: Vec::new() }
    }
}

type Describe = fn(&mut SchemaGenerator) -> String;

/// Adds a built-in type and what it refers to; gives the name of its model.
fn describe<T: JsonSchema>(generator: &mut SchemaGenerator) -> String {
    generator.subschema_for::<T>();
    T::schema_name().into_owned()
}

fn entry<T: Resource + JsonSchema>() -> (&'static str, &'static str, &'static str, Describe) {
    (T::GROUP, T::VERSION, T::KIND, describe::<T>)
}

/// The typed API's description of a built-in kind.
fn built_in(group: &str, version: &str, kind: &str) -> Option<Describe> {
    let known = [
        entry::<core::Pod>(),
        entry::<core::Service>(),
        entry::<core::ConfigMap>(),
        entry::<core::Secret>(),
        entry::<core::Namespace>(),
        entry::<core::Node>(),
        entry::<core::Event>(),
        entry::<core::ServiceAccount>(),
        entry::<core::PersistentVolumeClaim>(),
        entry::<core::PersistentVolume>(),
        entry::<core::Endpoints>(),
        entry::<core::ResourceQuota>(),
        entry::<core::LimitRange>(),
        entry::<core::ReplicationController>(),
        entry::<core::PodTemplate>(),
        entry::<core::Binding>(),
        entry::<apps::Deployment>(),
        entry::<apps::ReplicaSet>(),
        entry::<apps::StatefulSet>(),
        entry::<apps::DaemonSet>(),
        entry::<apps::ControllerRevision>(),
        entry::<batch::Job>(),
        entry::<batch::CronJob>(),
        entry::<autoscaling_v1::Scale>(),
        entry::<autoscaling_v1::HorizontalPodAutoscaler>(),
        entry::<autoscaling::HorizontalPodAutoscaler>(),
        entry::<coordination::Lease>(),
        entry::<scheduling::PriorityClass>(),
        entry::<rbac::Role>(),
        entry::<rbac::RoleBinding>(),
        entry::<rbac::ClusterRole>(),
        entry::<rbac::ClusterRoleBinding>(),
        entry::<events::Event>(),
        entry::<authorization::SubjectAccessReview>(),
        entry::<authorization::SelfSubjectAccessReview>(),
        entry::<authorization::LocalSubjectAccessReview>(),
        entry::<authorization::SelfSubjectRulesReview>(),
        entry::<authentication::TokenReview>(),
        entry::<authentication::TokenRequest>(),
        entry::<authentication::SelfSubjectReview>(),
        entry::<discovery::EndpointSlice>(),
        entry::<policy::PodDisruptionBudget>(),
        entry::<policy::Eviction>(),
        entry::<networking::NetworkPolicy>(),
        entry::<networking::Ingress>(),
        entry::<networking::IngressClass>(),
        entry::<storage::StorageClass>(),
        entry::<apiextensions::CustomResourceDefinition>(),
        entry::<admissionregistration::ValidatingWebhookConfiguration>(),
        entry::<admissionregistration::MutatingWebhookConfiguration>(),
    ];
    known.into_iter().find(|(g, v, k, _)| (*g, *v, *k) == (group, version, kind)).map(|(.., describe)| describe)
}

impl Models {
    /// Adds a kind and its list; gives the name of the kind's model.
    pub(super) fn add(&mut self, kind: &Kind<'_>) -> String {
        let model = match (kind.custom, built_in(kind.group, kind.version, kind.kind)) {
            (None, Some(describe)) => describe(&mut self.generator),
            (schema, _) => {
                let name = custom_name(kind);
                self.own.insert(name.clone(), custom_model(schema));
                name
            }
        };
        let gvk = |kind_name: &str| json!({"group": kind.group, "version": kind.version, "kind": kind_name});
        self.kinds.push((model.clone(), gvk(kind.kind)));
        if kind.verbs.iter().any(|verb| verb == "list") {
            let list = list_name(&model, kind.list_kind);
            self.own.insert(list.clone(), list_model(kind, &model));
            self.kinds.push((list, gvk(kind.list_kind)));
        }
        if kind.subresources.iter().any(|name| name == "scale") {
            describe::<autoscaling_v1::Scale>(&mut self.generator);
        }
        model
    }

    /// All schemas, those that are referred to with them.
    pub(super) fn finish(mut self) -> Value {
        let mut schemas = self.generator.take_definitions(true);
        for (name, schema) in &mut schemas {
            wrap_references(schema);
            complete(name, schema);
        }
        schemas.extend(self.own);
        for (model, gvk) in self.kinds {
            if let Some(Value::Object(schema)) = schemas.get_mut(&model) {
                schema.insert("x-kubernetes-group-version-kind".to_owned(), json!([gvk]));
            }
        }
        Value::Object(schemas)
    }
}

/// `com.example.v1.Widget` of the group example.com.
fn custom_name(kind: &Kind<'_>) -> String {
    let mut labels: Vec<&str> = kind.group.split('.').collect();
    labels.reverse();
    format!("{}.{}.{}", labels.join("."), kind.version, kind.kind)
}

pub(super) fn list_name(model: &str, list_kind: &str) -> String {
    match model.rsplit_once('.') {
        Some((package, _)) => format!("{package}.{list_kind}"),
        None => list_kind.to_owned(),
    }
}

fn reference(model: &str) -> Value {
    json!({"$ref": format!("{REFERENCE}{model}")})
}

fn referring(model: &str, description: &str) -> Value {
    json!({"allOf": [reference(model)], "default": {}, "description": description})
}

fn type_meta() -> Map<String, Value> {
    let mut properties = Map::new();
    properties.insert(
        "apiVersion".to_owned(),
        json!({"type": "string", "description": "The group and version of this representation of the object."}),
    );
    properties.insert(
        "kind".to_owned(),
        json!({"type": "string", "description": "The kind of object that this is. In CamelCase. Cannot be updated."}),
    );
    properties
}

fn list_model(kind: &Kind<'_>, model: &str) -> Value {
    let mut properties = type_meta();
    properties.insert("metadata".to_owned(), referring(LIST_META, "Metadata of the list."));
    let items = json!({"type": "array", "items": {"allOf": [reference(model)], "default": {}},
        "description": format!("The objects: {}.", kind.plural)});
    properties.insert("items".to_owned(), items);
    json!({
        "description": format!("{} is a list of {} objects.", kind.list_kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": properties,
    })
}

/// A custom kind's schema with the fields that every object has.
fn custom_model(schema: Option<&str>) -> Value {
    let mut model: Map<String, Value> = schema.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    model.insert("type".to_owned(), "object".into());
    let mut properties = type_meta();
    properties.insert("metadata".to_owned(), referring(OBJECT_META, "Standard object's metadata."));
    let own = model.get("properties").and_then(Value::as_object);
    for (name, value) in own.into_iter().flatten() {
        match properties.get_mut(name) {
            // What the definition says of these replaces the words, not the type.
            Some(known) => {
                if let (true, Some(words)) = (known.is_object(), value.get("description")) {
                    known["description"] = words.clone();
                }
            }
            None => {
                properties.insert(name.clone(), value.clone());
            }
        }
    }
    model.insert("properties".to_owned(), Value::Object(properties));
    Value::Object(model)
}

/// A reference with a description beside it becomes `allOf`, since version 3.0 ignores what stands beside a reference.
fn wrap_references(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.len() > 1 && map.get("$ref").is_some_and(Value::is_string) {
                if let Some(target) = map.remove("$ref") {
                    map.insert("allOf".to_owned(), json!([{"$ref": target}]));
                }
            }
            map.values_mut().for_each(wrap_references);
        }
        Value::Array(items) => items.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

/// Adds what the typed API does not say: kinds of lists and maps, patch keys, closed sets of values.
fn complete(model: &str, schema: &mut Value) {
    let Some(facts) = schema::describe(model) else { return };
    if facts.atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for fact in &facts.fields {
        let Some(property) = properties.get_mut(fact.name).filter(|property| property.is_object()) else { continue };
        if property["type"] == "array" {
            property["x-kubernetes-list-type"] = match &fact.list {
                ListKind::Atomic => "atomic".into(),
                ListKind::Set => "set".into(),
                ListKind::Map(keys) => {
                    property["x-kubernetes-list-map-keys"] = keys.clone().into();
                    "map".into()
                }
            };
        }
        if fact.atomic_map {
            property["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some(key) = fact.patch_key {
            property["x-kubernetes-patch-merge-key"] = key.into();
        }
        match (fact.patch_merge, fact.retain_keys) {
            (true, true) => property["x-kubernetes-patch-strategy"] = "merge,retainKeys".into(),
            (true, false) => property["x-kubernetes-patch-strategy"] = "merge".into(),
            (false, true) => property["x-kubernetes-patch-strategy"] = "retainKeys".into(),
            (false, false) => {}
        }
        if !fact.values.is_empty() {
            property["enum"] = fact.values.clone().into();
            let words = property["description"].as_str().unwrap_or_default();
            let values: Vec<String> = fact.values.iter().map(|value| format!(" - `{value:?}`")).collect();
            property["description"] = format!("{words}\n\nPossible enum values:\n{}", values.join("\n")).into();
        }
    }
}
