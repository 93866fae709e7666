use super::*;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a valid time")
}

fn facts(policy: RestartPolicy) -> Facts {
    Facts {
        restart_policy: policy,
        init: Vec::new(),
        containers: vec!["main".to_owned()],
        active_deadline: None,
        started_at: at(0),
    }
}

fn with_init(mut facts: Facts, name: &str, sidecar: bool, by_node: bool) -> Facts {
    facts.init.push(InitContainer { name: name.to_owned(), sidecar, by_node });
    facts
}

fn observed(facts: &Facts) -> Observed {
    let names = facts.init.iter().map(|i| &i.name).chain(&facts.containers);
    Observed {
        containers: names.map(|name| (name.clone(), Container::new())).collect(),
        peer_has_address: false,
        stop: None,
    }
}

fn running() -> State {
    State::Running { pid: 1, started_at: at(0) }
}

fn ended(code: i32, second: i64) -> State {
    State::Ended(Ended {
        exit_code: code,
        signal: None,
        reason: String::new(),
        message: None,
        started_at: Some(at(second)),
        finished_at: at(second),
    })
}

fn set(observed: &mut Observed, name: &str, state: State) {
    observed.containers.get_mut(name).expect("known").state = state;
}

fn start(name: &str, attempt: u32) -> Step {
    Step::Start { container: name.to_owned(), attempt }
}

#[test]
fn init_containers_run_in_order_before_the_containers() {
    let facts = with_init(with_init(facts(RestartPolicy::Always), "first", false, false), "second", false, false);
    let mut seen = observed(&facts);
    assert_eq!(decide(at(0), &facts, &seen).steps, [start("first", 0)]);
    set(&mut seen, "first", running());
    assert!(decide(at(0), &facts, &seen).steps.is_empty());
    set(&mut seen, "first", ended(0, 1));
    let plan = decide(at(1), &facts, &seen);
    assert_eq!((plan.steps, plan.phase), (vec![start("second", 0)], Phase::Pending));
    set(&mut seen, "second", ended(0, 2));
    assert_eq!(decide(at(2), &facts, &seen).steps, [start("main", 0)]);
    set(&mut seen, "main", running());
    let plan = decide(at(2), &facts, &seen);
    assert_eq!((plan.phase, plan.initialised), (Phase::Running, true));
}

#[test]
fn a_failed_init_container_fails_the_pod_or_is_tried_again() {
    let never = with_init(facts(RestartPolicy::Never), "init", false, false);
    let mut seen = observed(&never);
    set(&mut seen, "init", ended(1, 5));
    let plan = decide(at(5), &never, &seen);
    assert_eq!((plan.phase, plan.finished, plan.steps.len()), (Phase::Failed, true, 0));

    let again = with_init(facts(RestartPolicy::Always), "init", false, false);
    seen.containers.get_mut("init").expect("known").crashes = 2;
    let plan = decide(at(5), &again, &seen);
    assert_eq!((plan.phase, plan.wake_at), (Phase::Pending, Some(at(15))));
    assert_eq!(decide(at(15), &again, &seen).steps, [start("init", 1)]);
}

#[test]
fn the_nodes_own_init_container_is_done_once_the_peer_has_an_address() {
    let facts = with_init(facts(RestartPolicy::Never), "init-pytorch", false, true);
    let mut seen = observed(&facts);
    assert!(decide(at(0), &facts, &seen).steps.is_empty());
    seen.peer_has_address = true;
    assert_eq!(decide(at(0), &facts, &seen).steps, [Step::Complete { container: "init-pytorch".to_owned() }]);
}

#[test]
fn a_sidecar_runs_beside_and_is_stopped_last() {
    let facts = with_init(facts(RestartPolicy::Never), "side", true, false);
    let mut seen = observed(&facts);
    assert_eq!(decide(at(0), &facts, &seen).steps, [start("side", 0)]);
    set(&mut seen, "side", running());
    assert_eq!(decide(at(0), &facts, &seen).steps, [start("main", 0)]);
    set(&mut seen, "main", running());
    set(&mut seen, "side", ended(1, 3));
    assert_eq!(decide(at(3), &facts, &seen).steps, [start("side", 1)]);
    set(&mut seen, "side", running());
    set(&mut seen, "main", ended(0, 9));
    assert_eq!(decide(at(9), &facts, &seen).steps, [Step::Stop(Cause::Completed)]);
    seen.stop = Some(Stop { cause: Cause::Completed, kill_at: at(39), asked: true, killed: false });
    set(&mut seen, "side", ended(143, 10));
    let plan = decide(at(10), &facts, &seen);
    assert_eq!((plan.finished, plan.phase), (true, Phase::Succeeded));
}

#[test]
fn restarts_follow_policy_and_exit_code() {
    use RestartPolicy::{Always, Never, OnFailure};
    for (policy, code, restarts, phase) in [
        (Always, 0, true, Phase::Running),
        (Always, 1, true, Phase::Running),
        (OnFailure, 0, false, Phase::Succeeded),
        (OnFailure, 1, true, Phase::Running),
        (Never, 0, false, Phase::Succeeded),
        (Never, 1, false, Phase::Failed),
    ] {
        let facts = facts(policy);
        let mut seen = observed(&facts);
        set(&mut seen, "main", ended(code, 5));
        let plan = decide(at(5), &facts, &seen);
        assert_eq!((plan.phase, plan.finished), (phase, !restarts), "{policy:?} {code}");
        assert_eq!(plan.steps, if restarts { vec![start("main", 1)] } else { vec![] }, "{policy:?} {code}");
    }
}

#[test]
fn the_back_off_doubles_from_ten_seconds_to_five_minutes() {
    let delays: Vec<i64> = (0..9).map(|crashes| restart_delay(crashes).as_secs()).collect();
    assert_eq!(delays, [0, 0, 10, 20, 40, 80, 160, 300, 300]);
    let State::Ended(mut end) = ended(1, 100) else { unreachable!() };
    assert_eq!(crashes_after(4, &end), 5);
    end.finished_at = at(700);
    assert_eq!(crashes_after(4, &end), 1);
}

#[test]
fn one_container_of_two_that_waits_keeps_the_pod_pending() {
    let mut facts = facts(RestartPolicy::Never);
    facts.containers.push("other".to_owned());
    let mut seen = observed(&facts);
    set(&mut seen, "main", running());
    assert_eq!(decide(at(0), &facts, &seen).phase, Phase::Pending);
    set(&mut seen, "other", ended(1, 1));
    assert_eq!(decide(at(1), &facts, &seen).phase, Phase::Running);
    set(&mut seen, "main", ended(0, 2));
    assert_eq!(decide(at(2), &facts, &seen).phase, Phase::Failed);
}

#[test]
fn stopping_asks_then_kills() {
    let facts = facts(RestartPolicy::Always);
    let mut seen = observed(&facts);
    set(&mut seen, "main", running());
    let stop = Stop { cause: Cause::Deleted, kill_at: at(30), asked: false, killed: false };
    seen.stop = Some(stop);
    let plan = decide(at(0), &facts, &seen);
    assert_eq!(plan.steps, [Step::Terminate { container: "main".to_owned() }]);
    assert_eq!(plan.wake_at, Some(at(30)));
    seen.stop = Some(Stop { asked: true, ..stop });
    assert!(decide(at(10), &facts, &seen).steps.is_empty());
    assert_eq!(decide(at(30), &facts, &seen).steps, [Step::Kill { container: "main".to_owned() }]);
    set(&mut seen, "main", ended(137, 30));
    let plan = decide(at(30), &facts, &seen);
    assert!(plan.finished && plan.steps.is_empty(), "it is not restarted");
}

#[test]
fn the_deadline_ends_the_pod_as_failed() {
    let mut facts = facts(RestartPolicy::Always);
    facts.active_deadline = Some(SignedDuration::from_secs(60));
    let mut seen = observed(&facts);
    set(&mut seen, "main", running());
    assert_eq!(decide(at(0), &facts, &seen).wake_at, Some(at(60)));
    assert_eq!(decide(at(60), &facts, &seen).steps, [Step::Stop(Cause::Deadline)]);
    set(&mut seen, "main", ended(0, 61));
    seen.stop = Some(Stop { cause: Cause::Deadline, kill_at: at(90), asked: true, killed: false });
    let plan = decide(at(61), &facts, &seen);
    assert_eq!((plan.phase, plan.finished), (Phase::Failed, true));
}

fn any_policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: one start at a time, numbered without a gap, none while stopping, and a
    /// finished pod stays as it is.
    #[test]
    fn any_history_is_orderly(
        policy in any_policy(),
        sidecar in any::<bool>(),
        events in prop::collection::vec((0usize..3, 0i32..3, 0i64..700), 1..80),
    ) {
        let mut facts = with_init(with_init(facts(policy), "init", false, false), "side", sidecar, false);
        facts.containers.push("other".to_owned());
        let mut seen = observed(&facts);
        let mut now = 0;
        let mut finished: Option<Phase> = None;
        for (pick, code, seconds) in events {
            now += seconds;
            let plan = decide(at(now), &facts, &seen);
            if let Some(phase) = finished {
                prop_assert_eq!(plan.phase, phase);
            }
            if plan.finished {
                prop_assert!(plan.steps.is_empty());
                prop_assert!(seen.stop.is_some() || matches!(plan.phase, Phase::Succeeded | Phase::Failed));
                finished = Some(plan.phase);
            }
            for step in plan.steps {
                match step {
                    Step::Start { container, attempt } => {
                        prop_assert!(seen.stop.is_none() && finished.is_none());
                        let known = seen.containers.get_mut(&container).expect("known");
                        prop_assert!(!known.live());
                        let again = matches!(known.state, State::Ended(_));
                        prop_assert_eq!(attempt, known.attempt + u32::from(again));
                        if let State::Ended(end) = &known.state {
                            known.last = Some(end.clone());
                        }
                        known.attempt = attempt;
                        known.state = State::Running { pid: 1, started_at: at(now) };
                    }
                    Step::Stop(cause) => {
                        seen.stop = Some(Stop { cause, kill_at: at(now + 30), asked: false, killed: false });
                    }
                    Step::Terminate { .. } => seen.stop.as_mut().expect("stopping").asked = true,
                    Step::Kill { .. } => seen.stop.as_mut().expect("stopping").killed = true,
                    Step::Complete { .. } => prop_assert!(false, "no init container is the node's"),
                }
            }
            let live: Vec<String> =
                seen.containers.iter().filter(|(_, c)| c.live()).map(|(name, _)| name.clone()).collect();
            if let Some(name) = live.get(pick) {
                let container = seen.containers.get_mut(name).expect("known");
                container.state = ended(code, now);
                container.crashes += 1;
            }
        }
    }
}
