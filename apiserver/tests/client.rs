//! The API as kube-rs sees it, over the in-process service.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use muster_api::clock::Clock;
use muster_api::random::Random;
use muster_apiserver::{ApiServer, Backend, Identity, Options};
use serde_json::{Value, json};
use tower::ServiceExt;

async fn server() -> ApiServer {
    ApiServer::open(Options { crds: muster_api::crds(), ..Options::memory() }).await.expect("opens")
}

fn client(server: &ApiServer) -> Client {
    Client::new(server.service(Identity::admin()), "default")
}

fn config_map(name: &str, data: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"a": data}})).expect("is a config map")
}

fn pod(name: &str) -> Pod {
    let spec = json!({"containers": [{"name": "main", "image": "host", "command": ["true"]}]});
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("is a pod")
}

/// A default service account is there where pods are made; the controller that makes it is not part of this crate.
async fn with_service_account(client: &Client) {
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::default_namespaced(client.clone());
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).expect("is an account");
    accounts.create(&PostParams::default(), &account).await.expect("creates");
}

fn code<T: std::fmt::Debug>(outcome: kube::Result<T>) -> u16 {
    match outcome {
        Err(kube::Error::Api(status)) => status.code,
        other => unreachable!("expected an error of the API, got {other:?}"),
    }
}

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server().await));
    let created = maps.create(&PostParams::default(), &config_map("a", "1")).await.expect("creates");
    assert!(created.uid().is_some() && created.creation_timestamp().is_some());
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("a", "1")).await), 409);
    let mut changed = created.clone();
    changed.data = config_map("a", "2").data;
    let changed = maps.replace("a", &PostParams::default(), &changed).await.expect("replaces");
    assert_eq!(code(maps.replace("a", &PostParams::default(), &created).await), 409, "the old version is stale");
    assert_ne!(created.resource_version(), changed.resource_version());
    let patch = Patch::Merge(json!({"data": {"b": "3"}}));
    let patched = maps.patch("a", &PatchParams::default(), &patch).await.expect("patches");
    assert_eq!(patched.data.expect("has data").len(), 2);
    maps.delete("a", &DeleteParams::default()).await.expect("deletes");
    assert_eq!(code(maps.get("a").await), 404);
}

#[tokio::test]
async fn two_appliers_conflict_until_one_forces() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server().await));
    let apply =
        |data: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": data}});
    let (one, two) = (PatchParams::apply("one"), PatchParams::apply("two"));
    maps.patch("a", &one, &Patch::Apply(apply("1"))).await.expect("applies");
    assert_eq!(code(maps.patch("a", &two, &Patch::Apply(apply("2"))).await), 409);
    let forced = maps.patch("a", &two.force(), &Patch::Apply(apply("2"))).await.expect("applies by force");
    assert_eq!(forced.data.expect("has data")["a"], "2");
    assert_eq!(forced.metadata.managed_fields.expect("has managers").len(), 1);
}

#[tokio::test]
async fn finalizers_hold_an_object_and_foreground_deletion_is_one() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server().await));
    maps.create(&PostParams::default(), &config_map("a", "1")).await.expect("creates");
    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    maps.delete("a", &foreground).await.expect("deletes");
    let held = maps.get("a").await.expect("is still there");
    assert_eq!(held.finalizers(), ["foregroundDeletion"]);
    assert!(held.metadata.deletion_timestamp.is_some());
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("a", &PatchParams::default(), &free).await.expect("patches");
    assert_eq!(code(maps.get("a").await), 404);
}

#[tokio::test]
async fn pages_are_of_one_moment() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server().await));
    for n in 0..5 {
        maps.create(&PostParams::default(), &config_map(&format!("m{n}"), "x")).await.expect("creates");
    }
    let first = maps.list(&ListParams::default().limit(3)).await.expect("lists");
    assert_eq!(first.metadata.remaining_item_count, Some(2));
    maps.create(&PostParams::default(), &config_map("m5", "x")).await.expect("creates");
    maps.delete("m4", &DeleteParams::default()).await.expect("deletes");
    let token = first.metadata.continue_.expect("has more");
    let rest = maps.list(&ListParams::default().limit(3).continue_token(&token)).await.expect("lists");
    assert_eq!(rest.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["m3", "m4"]);
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
}

#[tokio::test]
async fn a_watch_sees_objects_enter_and_leave_its_selection() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server));
    let start =
        maps.list(&ListParams::default()).await.expect("lists").metadata.resource_version.expect("has a version");
    let selection = WatchParams::default().labels("w=x").timeout(2);
    let events = maps.watch(&selection, &start).await.expect("watches");
    maps.create(&PostParams::default(), &config_map("a", "1")).await.expect("creates");
    for labels in [json!({"w": "x"}), json!({"w": "x", "n": "1"}), json!({"w": "y"}), json!({"w": "x"})] {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        maps.patch("a", &PatchParams::default(), &patch).await.expect("patches");
    }
    maps.delete("a", &DeleteParams::default()).await.expect("deletes");
    let kinds = events.map_ok(|event| match event {
        WatchEvent::Added(_) => "added",
        WatchEvent::Modified(_) => "modified",
        WatchEvent::Deleted(_) => "deleted",
        WatchEvent::Bookmark(_) => "bookmark",
        WatchEvent::Error(_) => "error",
    });
    let kinds: Vec<&str> = kinds.try_collect().await.expect("ends well");
    let kinds: Vec<&str> = kinds.into_iter().filter(|kind| *kind != "bookmark").collect();
    assert_eq!(kinds, ["added", "modified", "deleted", "added", "deleted"]);
}

/// A clock that follows tokio's, which a test can pause.
fn virtual_clock() -> Clock {
    let (start, zero) = (jiff::Timestamp::UNIX_EPOCH, tokio::time::Instant::now());
    Clock::from_fn(move || start + zero.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_watcher_lives_through_a_silent_virtual_day_without_relisting() {
    let options = Options { clock: virtual_clock(), random: Random::seeded(1), ..Options::memory() };
    let server = ApiServer::open(options).await.expect("opens");
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server));
    let stream = watcher(maps.clone(), watcher::Config::default()).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let mut starts = 0;
    let day = tokio::time::sleep(std::time::Duration::from_secs(86_400));
    let mut day = std::pin::pin!(day);
    loop {
        tokio::select! {
            biased;
            event = stream.next() => match event.expect("never ends").expect("never fails") {
                watcher::Event::Init => starts += 1,
                _ => {}
            },
            () = &mut day => break,
        }
    }
    assert_eq!(starts, 1);
    maps.create(&PostParams::default(), &config_map("a", "1")).await.expect("creates");
    let event = stream.next().await.expect("never ends").expect("never fails");
    assert!(matches!(event, watcher::Event::Apply(map) if map.name_any() == "a"));
}

#[tokio::test]
async fn custom_kinds_come_and_go_with_their_definition() {
    let server = server().await;
    let client = client(&server);
    let definitions: Api<DynamicObject> = Api::all_with(
        client.clone(),
        &ApiResource::from_gvk(&GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition")),
    );
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "runs.test.example.com"},
        "spec": {"group": "test.example.com", "scope": "Namespaced",
            "names": {"plural": "runs", "singular": "run", "kind": "Run", "listKind": "RunList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "default": 3}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}});
    let definition: DynamicObject = serde_json::from_value(definition).expect("is an object");
    definitions.create(&PostParams::default(), &definition).await.expect("creates");
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("test.example.com", "v1", "Run"));
    let runs: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &kind);
    let run = |n: Value| -> DynamicObject {
        let run = json!({"apiVersion": "test.example.com/v1", "kind": "Run", "metadata": {"name": "r"}, "spec": {"n": n, "x": 1}, "status": {"a": 1}});
        serde_json::from_value(run).expect("is an object")
    };
    assert_eq!(code(runs.create(&PostParams::default(), &run(json!(0))).await), 422);
    let created = runs.create(&PostParams::default(), &run(json!(2))).await.expect("creates");
    assert_eq!(created.data, json!({"spec": {"n": 2}}), "unknown fields and status are left out");
    let status = Patch::Merge(json!({"status": {"phase": "Done"}, "spec": {"n": 9}}));
    let patched = runs.patch_status("r", &PatchParams::default(), &status).await.expect("patches");
    assert_eq!(patched.data, json!({"spec": {"n": 2}, "status": {"phase": "Done"}}));
    assert_eq!(patched.metadata.generation, Some(1));
    definitions.delete("runs.test.example.com", &DeleteParams::default()).await.expect("deletes");
    assert_eq!(code(runs.get("r").await), 404);
    assert_eq!(code(definitions.get("runs.test.example.com").await), 404);
}

#[tokio::test]
async fn a_gang_is_bound_whole_or_not_at_all() {
    let server = server().await;
    let client = client(&server);
    with_service_account(&client).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut bindings = Vec::new();
    for name in ["a", "b"] {
        let pod = pods.create(&PostParams::default(), &pod(name)).await.expect("creates");
        bindings.push(
            json!({"namespace": "default", "name": name, "uid": pod.uid(), "node": "n", "annotations": {"k": name}}),
        );
    }
    let post = |bindings: Value| {
        let gang = json!({"apiVersion": "muster.dev/v1alpha1", "kind": "GangBinding", "bindings": bindings});
        let request =
            http::Request::post("/apis/muster.dev/v1alpha1/gangbindings").header("content-type", "application/json");
        client.request::<Value>(request.body(gang.to_string().into_bytes()).expect("is a request"))
    };
    let mut wrong = bindings.clone();
    wrong[1]["uid"] = "another".into();
    assert_eq!(code(post(json!(wrong)).await), 409);
    assert_eq!(pods.get("a").await.expect("is there").spec.expect("has a spec").node_name, None);
    post(json!(bindings)).await.expect("binds");
    for name in ["a", "b"] {
        let pod = pods.get(name).await.expect("is there");
        assert_eq!(pod.annotations()["k"], name);
        assert_eq!(pod.spec.expect("has a spec").node_name.as_deref(), Some("n"));
    }
    assert_eq!(code(post(json!(bindings)).await), 409, "they are bound already");
}

#[tokio::test]
async fn others_may_do_what_their_roles_say() {
    let server = server().await;
    let admin = client(&server);
    let alice = Client::new(server.service(Identity::new("alice", [] as [&str; 0])), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(alice.clone());
    assert_eq!(code(maps.get("a").await), 403);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
        "rules": [{"verbs": ["create", "get"], "apiGroups": [""], "resources": ["configmaps"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}]});
    for object in [role, binding] {
        let object: DynamicObject = serde_json::from_value(object).expect("is an object");
        let types = object.types.clone().expect("has a type");
        let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(&types).expect("is a kind"));
        let api: Api<DynamicObject> = Api::default_namespaced_with(admin.clone(), &kind);
        api.create(&PostParams::default(), &object).await.expect("creates");
    }
    maps.create(&PostParams::default(), &config_map("a", "1")).await.expect("may create");
    maps.get("a").await.expect("may get");
    assert_eq!(code(maps.delete("a", &DeleteParams::default()).await), 403);
    assert_eq!(code(Api::<ConfigMap>::namespaced(alice, "kube-system").get("a").await), 403);
}

#[tokio::test]
async fn who_may_only_view_reads_no_secrets() {
    let server = server().await;
    let admin = client(&server);
    let kind = |group: &str, kind: &str, plural: &str| ApiResource {
        plural: plural.to_owned(),
        ..ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind))
    };
    let bindings = kind("rbac.authorization.k8s.io", "RoleBinding", "rolebindings");
    for role in ["view", "edit", "admin"] {
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role}]});
        let api: Api<DynamicObject> = Api::default_namespaced_with(admin.clone(), &bindings);
        let binding = serde_json::from_value(binding).expect("is an object");
        api.create(&PostParams::default(), &binding).await.expect("creates");
    }
    let user = |name: &str| Client::new(server.service(Identity::new(name, [] as [&str; 0])), "default");
    let jobs = kind("kubeflow.org", "PyTorchJob", "pytorchjobs");
    let (secrets, roles) = (kind("", "Secret", "secrets"), kind("rbac.authorization.k8s.io", "Role", "roles"));
    let none = DeleteParams::default();
    for (name, resource, reads, deletes) in [
        ("view", &jobs, 200, 403),
        ("view", &secrets, 403, 403),
        ("view", &roles, 403, 403),
        ("edit", &jobs, 200, 404),
        ("edit", &secrets, 200, 404),
        ("edit", &roles, 403, 403),
        ("admin", &jobs, 200, 404),
        ("admin", &roles, 200, 404),
    ] {
        let api: Api<DynamicObject> = Api::default_namespaced_with(user(name), resource);
        let read = match api.list(&ListParams::default()).await {
            Ok(_) => 200,
            refused => code(refused),
        };
        assert_eq!((read, code(api.delete("x", &none).await)), (reads, deletes), "{name} of {}", resource.plural);
        let elsewhere: Api<DynamicObject> = Api::namespaced_with(user(name), "kube-system", resource);
        assert_eq!(code(elsewhere.list(&ListParams::default()).await), 403, "{name} of {}", resource.plural);
    }
}

#[tokio::test]
async fn what_was_answered_survives_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = || async {
        let options = Options {
            backend: Backend::Sqlite(folder.path().join("store.db")),
            crds: muster_api::crds(),
            ..Options::memory()
        };
        ApiServer::open(options).await.expect("opens")
    };
    let server = open().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server));
    let created = maps.create(&PostParams::default(), &config_map("a", "1")).await.expect("creates");
    let revision = server.store().revision();
    server.close().await;
    drop((server, maps));
    let server = open().await;
    assert_eq!(server.store().revision(), revision, "a start that finds all in place writes nothing");
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server));
    assert_eq!(maps.get("a").await.expect("is there"), created);
    let namespaces: Api<Namespace> = Api::all(client(&server));
    assert!(namespaces.list(&ListParams::default()).await.expect("lists").items.len() >= 3);
}

#[tokio::test]
async fn a_deleted_definition_serves_its_kind_until_its_objects_are_gone() {
    let server = server().await;
    let definitions: Api<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> =
        Api::all(client(&server));
    let definition = json!({"metadata": {"name": "wheels.example.com"}, "spec": {"group": "example.com",
        "names": {"kind": "Wheel", "plural": "wheels"}, "scope": "Namespaced", "versions": [{"name": "v1", "served": true,
        "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let definition = serde_json::from_value(definition).expect("is a definition");
    definitions.create(&PostParams::default(), &definition).await.expect("creates");
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Wheel"));
    let wheels: Api<DynamicObject> = Api::default_namespaced_with(client(&server), &resource);
    let mut wheel = DynamicObject::new("w", &resource);
    wheel.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    wheels.create(&PostParams::default(), &wheel).await.expect("creates");
    let mut events = wheels.watch(&WatchParams::default(), "0").await.expect("watches").boxed();
    definitions.delete("wheels.example.com", &DeleteParams::default()).await.expect("deletes");
    assert!(wheels.get("w").await.expect("is held").metadata.deletion_timestamp.is_some());
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    wheels.patch("w", &PatchParams::default(), &free).await.expect("lets it go");
    assert_eq!(code(wheels.get("w").await), 404);
    assert_eq!(code(definitions.get("wheels.example.com").await), 404);
    // A watch of a kind that is gone ends, after it has told the end of the objects.
    let mut last = None;
    while let Some(event) = events.try_next().await.expect("is a good stream") {
        last = Some(event);
    }
    assert!(matches!(last, Some(WatchEvent::Deleted(_))), "{last:?}");
}

#[tokio::test]
async fn a_quota_is_not_exceeded_by_writes_at_once() {
    let server = server().await;
    let quotas: Api<k8s_openapi::api::core::v1::ResourceQuota> = Api::default_namespaced(client(&server));
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "3"}}});
    let quota = serde_json::from_value(quota).expect("is a quota");
    quotas.create(&PostParams::default(), &quota).await.expect("creates");
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server));
    let writes = (0..8).map(|n| {
        let maps = maps.clone();
        async move { maps.create(&PostParams::default(), &config_map(&format!("m{n}"), "x")).await }
    });
    let outcomes = futures::future::join_all(writes).await;
    let refused: Vec<String> = outcomes.iter().filter_map(|o| o.as_ref().err().map(ToString::to_string)).collect();
    assert_eq!(refused.len(), 5);
    assert!(
        refused.iter().all(|why| why.contains(
            "exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=3, limited: count/configmaps=3"
        )),
        "{refused:?}"
    );
    let stored = outcomes.into_iter().flatten().next().and_then(|map| map.metadata.name).expect("three are stored");
    maps.delete(&stored, &DeleteParams::default()).await.expect("deletes");
    maps.create(&PostParams::default(), &config_map("late", "x")).await.expect("there is room again");
}

#[tokio::test]
async fn a_write_whose_client_has_left_counts_against_the_quota() {
    let folder = tempfile::tempdir().expect("a folder");
    let backend = Backend::Sqlite(folder.path().join("store.db"));
    let server = ApiServer::open(Options { backend, ..Options::memory() }).await.expect("opens");
    let quotas: Api<k8s_openapi::api::core::v1::ResourceQuota> = Api::default_namespaced(client(&server));
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "1"}}});
    let quota = serde_json::from_value(quota).expect("is a quota");
    quotas.create(&PostParams::default(), &quota).await.expect("creates");
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server));
    for _ in 0..20 {
        let body = serde_json::to_vec(&config_map("left", "x")).expect("is JSON");
        let request = http::Request::post("/api/v1/namespaces/default/configmaps")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(http_body_util::Full::new(bytes::Bytes::from(body)))
            .expect("is a request");
        let mut left = Box::pin(server.service(Identity::admin()).oneshot(request));
        // As far as it goes without waiting: the write is on its way to the disk, or there.
        drop(futures::poll!(&mut left));
        drop(left);
        let refused =
            maps.create(&PostParams::default(), &config_map("after", "x")).await.expect_err("one is too much");
        assert!(refused.to_string().contains("exceeded quota: q"), "{refused}");
        maps.delete("left", &DeleteParams::default()).await.expect("it was stored");
    }
}
