//! Tables of text: the server's `Table` answers, and our own.

use serde_json::Value;

/// Rows under headers, aligned when shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    pub(crate) headers: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// Which columns of the server's table are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) wide: bool,
    pub(crate) namespace: bool,
    /// Put before each name, when several kinds are shown together.
    pub(crate) kind: Option<&'a str>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headers: [&str; N]) -> Table {
        Table { headers: headers.iter().map(|h| h.to_string()).collect(), rows: Vec::new() }
    }

    /// The `meta.k8s.io/v1` Table of the server.
    pub(crate) fn of_server(answer: &Value, columns: Columns<'_>) -> Table {
        let none = Vec::new();
        let definitions = answer["columnDefinitions"].as_array().unwrap_or(&none);
        let shown: Vec<usize> = (0..definitions.len())
            .filter(|i| columns.wide || definitions[*i]["priority"].as_i64().unwrap_or(0) == 0)
            .collect();
        let mut table = Table::default();
        table.headers.extend(columns.namespace.then(|| "NAMESPACE".to_owned()));
        table.headers.extend(shown.iter().map(|i| definitions[*i]["name"].as_str().unwrap_or_default().to_uppercase()));
        for row in answer["rows"].as_array().unwrap_or(&none) {
            let mut cells = Vec::with_capacity(table.headers.len());
            if columns.namespace {
                cells.push(row["object"]["metadata"]["namespace"].as_str().unwrap_or_default().to_owned());
            }
            for (position, i) in shown.iter().enumerate() {
                let cell = cell(&row["cells"][*i]);
                match columns.kind {
                    Some(kind) if position == 0 => cells.push(format!("{kind}/{cell}")),
                    _ => cells.push(cell),
                }
            }
            table.rows.push(cells);
        }
        table
    }

    pub(crate) fn push<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The width of each column, at least `minimum`, so that later rows of a watch stand below the earlier ones.
    pub(crate) fn widths(&self, minimum: &[usize]) -> Vec<usize> {
        let mut widths: Vec<usize> = self.headers.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths.iter().enumerate().map(|(i, width)| (*width).max(minimum.get(i).copied().unwrap_or(0))).collect()
    }

    pub(crate) fn render(&self, headers: bool, widths: &[usize], indent: &str) -> String {
        let mut out = String::new();
        let header = headers.then_some(&self.headers);
        for row in header.into_iter().chain(&self.rows) {
            let mut line = String::from(indent);
            for (i, cell) in row.iter().enumerate() {
                line.push_str(cell);
                if i + 1 < row.len() {
                    let pad = widths.get(i).copied().unwrap_or(0).saturating_sub(cell.chars().count()) + 3;
                    line.extend(std::iter::repeat_n(' ', pad));
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(true, &self.widths(&[]), ""))
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace('\n', " "),
        Value::Null => "<none>".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_servers_table_is_shown_with_the_columns_asked_for() {
        let answer = json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Restarts", "priority": 0}, {"name": "IP", "priority": 1}],
            "rows": [{"cells": ["a-long-name", 0, "127.0.0.1"], "object": {"metadata": {"namespace": "default"}}}],
        });
        let shown = |wide, namespace, kind| Table::of_server(&answer, Columns { wide, namespace, kind }).to_string();
        assert_eq!(shown(false, false, None), "NAME          RESTARTS\na-long-name   0\n");
        assert_eq!(shown(false, false, Some("pod")), "NAME              RESTARTS\npod/a-long-name   0\n");
        assert_eq!(
            shown(true, true, None),
            "NAMESPACE   NAME          RESTARTS   IP\ndefault     a-long-name   0          127.0.0.1\n"
        );
    }
}
