//! Random JSON for property tests, with names that the schemas know mixed in.

use proptest::prelude::*;
use serde_json::Value;

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("name".to_owned()),
        Just("spec".to_owned()),
        Just("metadata".to_owned()),
        Just("labels".to_owned()),
        Just("containers".to_owned()),
        Just("env".to_owned()),
        Just("value".to_owned()),
        Just("resources".to_owned()),
        Just("limits".to_owned()),
        Just("type".to_owned()),
        Just("properties".to_owned()),
        Just("items".to_owned()),
        Just("data".to_owned()),
        Just("$patch".to_owned()),
        "[a-c]{1,2}",
    ]
}

/// Any small JSON value.
pub(crate) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..9_i64).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(Value::from(1.5)),
        "[a-c]{0,2}".prop_map(Value::from),
        Just(Value::from("object")),
        Just(Value::from("string")),
        Just(Value::from("1Gi")),
        Just(Value::from("2020-01-01T00:00:00Z")),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
