//! The columns of a kind's `Table`: what `kubectl get` prints.

use super::BuiltinKind;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

/// A column of a kind's `Table`.
#[derive(Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub r#type: &'static str,
    /// OpenAPI format, `name` for the name column, else empty.
    pub format: &'static str,
    pub doc: Doc,
    /// 0 is always shown; above 0 only with `-o wide`.
    pub priority: i32,
}

/// What describes a column.
#[derive(Clone, Copy)]
pub enum Doc {
    Text(&'static str),
    /// The description that the API's schema gives a field: the type's schema, the field's JSON name.
    Field(fn(&mut SchemaGenerator) -> Schema, &'static str),
}

impl Column {
    /// A column of text that is always shown.
    pub const fn new(name: &'static str, doc: Doc) -> Self {
        Column { name, r#type: "string", format: "", doc, priority: 0 }
    }

    /// A column that only `-o wide` shows.
    pub const fn wide(name: &'static str, doc: Doc) -> Self {
        Column { name, r#type: "string", format: "", doc, priority: 1 }
    }

    pub const fn format(mut self, format: &'static str) -> Self {
        self.format = format;
        self
    }

    pub const fn typed(mut self, r#type: &'static str) -> Self {
        self.r#type = r#type;
        self
    }

    fn describe(&self) -> String {
        match self.doc {
            Doc::Text(text) => text.to_owned(),
            Doc::Field(schema, field) => {
                let schema = schema(&mut SchemaGenerator::default());
                let text = schema.pointer(&format!("/properties/{field}/description")).and_then(Value::as_str);
                text.unwrap_or_default().to_owned()
            }
        }
    }
}

impl BuiltinKind {
    /// The `columnDefinitions` of this kind's `Table`, made once.
    pub fn column_definitions(&self) -> Arc<Value> {
        type Made = BTreeMap<(&'static str, &'static str, &'static str), Arc<Value>>;
        static MADE: OnceLock<Mutex<Made>> = OnceLock::new();
        let mut made = MADE.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
        let definitions = made.entry((self.group, self.version, self.kind)).or_insert_with(|| {
            let columns = self.columns.iter().map(|c| {
                json!({
                    "name": c.name, "type": c.r#type, "format": c.format, "description": c.describe(),
                    "priority": c.priority,
                })
            });
            Arc::new(Value::Array(columns.collect()))
        });
        definitions.clone()
    }
}
