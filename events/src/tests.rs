use super::*;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use std::sync::Mutex;

type Seen = Arc<Mutex<Vec<(Method, serde_json::Value)>>>;

/// A server that keeps what it gets; events of these names are there already, twice.
fn server(there: &'static [&'static str]) -> (Client, Seen) {
    let seen = Seen::default();
    let kept = seen.clone();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let kept = kept.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let found = there.contains(&value["reason"].as_str().unwrap_or_default());
            kept.lock().expect("the requests").push((parts.method.clone(), value.clone()));
            let (code, answer) = match parts.method {
                Method::POST if found => {
                    (409, json!({"kind": "Status", "reason": "AlreadyExists", "code": 409, "status": "Failure"}))
                }
                Method::GET => (200, json!({"metadata": {}, "involvedObject": {}, "count": 2})),
                _ => (200, json!({"metadata": {}, "involvedObject": {}})),
            };
            let answer = Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string())));
            Ok::<_, Infallible>(answer.expect("an answer"))
        }
    });
    (Client::new(service, "ns"), seen)
}

fn reasons(seen: &Seen) -> Vec<String> {
    let seen = seen.lock().expect("the requests");
    let posts = seen.iter().filter(|(method, _)| method == Method::POST);
    posts.map(|(_, event)| event["reason"].as_str().unwrap_or_default().to_owned()).collect()
}

fn clock() -> Clock {
    let start = tokio::time::Instant::now();
    Clock::from_fn(move || Timestamp::UNIX_EPOCH + start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn normal_events_keep_to_a_rate_and_warnings_do_not_wait() {
    let (client, seen) = server(&[]);
    let shutdown = CancellationToken::new();
    let (recorder, _tasks) = Recorder::start(&client, &clock(), None, &shutdown);
    for number in 0..400 {
        let subject = Subject::pod("ns", &format!("p{number}"), &format!("u{number}"));
        recorder.record(&subject, "me", Severity::Normal, "Started", "it runs");
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(reasons(&seen).len(), 100);
    recorder.record(&Subject::pod("ns", "p399", "u399"), "me", Severity::Warning, "Failed", "it failed");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(reasons(&seen).last().map(String::as_str), Some("Failed"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(reasons(&seen).len(), 151);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(reasons(&seen).len(), 401, "late is not never");
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_at_the_end_is_still_told() {
    let (client, seen) = server(&[]);
    let shutdown = CancellationToken::new();
    let (recorder, mut tasks) = Recorder::start(&client, &clock(), None, &shutdown);
    for number in 0..300 {
        let subject = Subject::pod("ns", &format!("p{number}"), &format!("u{number}"));
        recorder.record(&subject, "me", Severity::Normal, "Started", "it runs");
    }
    shutdown.cancel();
    while tasks.join_next().await.is_some() {}
    assert_eq!(reasons(&seen).len(), 300);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_repeats_is_counted() {
    let (client, seen) = server(&["BackOff"]);
    let shutdown = CancellationToken::new();
    let (recorder, _tasks) = Recorder::start(&client, &clock(), Some("node-1"), &shutdown);
    let subject = Subject::pod("ns", "p", "u");
    // Passes of the same moment are one event.
    for _ in 0..3 {
        recorder.record(&subject, "kubelet", Severity::Normal, "Started", "it runs");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    recorder.record(&subject, "kubelet", Severity::Normal, "Started", "it runs");
    // Told before a restart.
    recorder.record(&subject, "kubelet", Severity::Warning, "BackOff", "it failed");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let seen = seen.lock().expect("the requests");
    let started: Vec<&serde_json::Value> =
        seen.iter().filter(|(method, _)| method == Method::POST).map(|(_, event)| event).collect();
    assert_eq!(started.len(), 2);
    assert_eq!(started[0]["source"], json!({"component": "kubelet", "host": "node-1"}));
    assert_eq!(started[0]["involvedObject"]["name"], "p");
    let mut counts: Vec<i64> = seen.iter().filter_map(|(_, patch)| patch["count"].as_i64()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn no_object_floods_the_store() {
    let (client, seen) = server(&[]);
    let shutdown = CancellationToken::new();
    let (recorder, _tasks) = Recorder::start(&client, &clock(), None, &shutdown);
    let subject = Subject::pod("ns", "p", "u");
    for number in 0..500 {
        recorder.record(&subject, "me", Severity::Warning, "Failed", &format!("attempt {number}"));
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(reasons(&seen).len(), 100);
    recorder.record(&subject, "me", Severity::Warning, "Failed", "later");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(reasons(&seen).len(), 101);
}
