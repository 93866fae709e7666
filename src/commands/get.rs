//! `muster get`: the server's own tables, or the objects.

use crate::cli::{GetArgs, OutputFormat};
use crate::client::{Connection, JSON, Kinds, Selected, TABLE, with_query};
use crate::exit::ExitStatus;
use crate::output::{self, Columns, Table};
use anyhow::{Result, bail};
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::{Value, json};

pub(crate) async fn run(args: &GetArgs) -> Result<ExitStatus> {
    let connection = Connection::open(&args.target).await?;
    let kinds = Kinds::discover(&connection).await?;
    let selected = kinds.select(&args.what)?;
    if args.watch {
        let [one] = &selected[..] else { bail!("--watch shows one kind or one object at a time") };
        return watch(&connection, one, args).await;
    }
    match args.output {
        Some(format @ (OutputFormat::Json | OutputFormat::Yaml | OutputFormat::Name)) => {
            objects(&connection, &selected, args, format).await
        }
        None | Some(OutputFormat::Wide) => tables(&connection, &selected, args).await,
    }
}

/// The path of what is selected. A watch goes by the collection, with a field selector for one object's name.
fn path(connection: &Connection, selected: &Selected, args: &GetArgs) -> Result<String> {
    if args.all_namespaces && selected.name.is_some() {
        bail!("a name and --all-namespaces exclude each other");
    }
    let namespace = (!args.all_namespaces).then_some(connection.namespace.as_str());
    let (path, field) = match &selected.name {
        Some(name) if args.watch => (selected.kind.collection(namespace), Some(format!("metadata.name={name}"))),
        Some(name) => (selected.kind.object(&connection.namespace, name), None),
        None => (selected.kind.collection(namespace), args.field_selector.clone()),
    };
    Ok(with_query(&path, &[("labelSelector", args.selector.as_deref()), ("fieldSelector", field.as_deref())]))
}

fn columns<'a>(args: &GetArgs, selected: &Selected, kind: Option<&'a str>) -> Columns<'a> {
    Columns {
        wide: args.output == Some(OutputFormat::Wide),
        namespace: args.all_namespaces && selected.kind.namespaced,
        kind,
    }
}

async fn tables(connection: &Connection, selected: &[Selected], args: &GetArgs) -> Result<ExitStatus> {
    let several = selected.iter().any(|s| s.kind != selected[0].kind);
    let (mut shown, mut failed) = (false, false);
    // Neighbours of one kind stand in one table.
    for group in selected.chunk_by(|a, b| a.kind == b.kind) {
        let mut table = Table::default();
        for one in group {
            match connection.get(&path(connection, one, args)?, TABLE).await {
                Ok(answer) => {
                    let qualified = one.kind.qualified();
                    let part = Table::of_server(&answer, columns(args, one, several.then_some(qualified.as_str())));
                    table.headers = part.headers;
                    table.rows.extend(part.rows);
                }
                Err(error) => {
                    eprintln!("error: {error:#}");
                    failed = true;
                }
            }
        }
        if !table.rows.is_empty() {
            if shown {
                println!();
            }
            print!("{}", table.render(!args.no_headers, &table.widths(&[]), ""));
            shown = true;
        }
    }
    if !shown && !failed {
        match args.all_namespaces || !selected.iter().any(|s| s.kind.namespaced) {
            true => eprintln!("No resources found"),
            false => eprintln!("No resources found in {} namespace.", connection.namespace),
        }
    }
    Ok(if failed { ExitStatus::Failure } else { ExitStatus::Success })
}

async fn objects(
    connection: &Connection,
    selected: &[Selected],
    args: &GetArgs,
    format: OutputFormat,
) -> Result<ExitStatus> {
    let mut found: Vec<(Value, &Selected)> = Vec::new();
    let mut listed = selected.len() > 1;
    for one in selected {
        let answer = connection.get(&path(connection, one, args)?, JSON).await?;
        if one.name.is_some() {
            found.push((answer, one));
            continue;
        }
        listed = true;
        for mut item in answer["items"].as_array().cloned().unwrap_or_default() {
            // Items of a list carry no kind of their own.
            item["apiVersion"] = one.kind.api_version().into();
            item["kind"] = one.kind.kind.clone().into();
            found.push((item, one));
        }
    }
    if format == OutputFormat::Name {
        for (object, one) in &found {
            println!("{}", output::name(object, &one.kind));
        }
    } else if listed {
        let items: Vec<Value> = found.into_iter().map(|(object, _)| object).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items});
        println!("{}", output::object(&list, &selected[0].kind, format)?);
    } else if let Some((object, one)) = found.first() {
        println!("{}", output::object(object, &one.kind, format)?);
    }
    Ok(ExitStatus::Success)
}

/// Shows what is there, then each change, until interrupted or the server has gone.
async fn watch(connection: &Connection, one: &Selected, args: &GetArgs) -> Result<ExitStatus> {
    let as_objects = args.output.filter(|f| *f != OutputFormat::Wide);
    let accept = if as_objects.is_some() { JSON } else { TABLE };
    let collection = path(connection, one, args)?;
    let mut widths: Vec<usize> = Vec::new();
    let mut headers = !args.no_headers;
    let mut version = String::new();
    let mut show = |event: &Value| -> Result<()> {
        if let Some(format) = as_objects {
            println!("{}", output::object(event, &one.kind, format)?);
            return Ok(());
        }
        let table = Table::of_server(event, columns(args, one, None));
        if !table.rows.is_empty() {
            widths = table.widths(&widths);
            print!("{}", table.render(headers && !table.headers.is_empty(), &widths, ""));
            headers = false;
        }
        Ok(())
    };
    loop {
        if version.is_empty() {
            let list = connection.get(&collection, accept).await?;
            version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            match as_objects {
                Some(_) => list["items"].as_array().into_iter().flatten().try_for_each(&mut show)?,
                None => show(&list)?,
            }
        }
        let watched = with_query(&collection, &[("watch", Some("true")), ("resourceVersion", Some(&version))]);
        let events = connection.stream(&watched, accept).await.map_err(|e| connection.explain(e))?;
        let mut lines = events.lines();
        while let Some(line) = lines.next().await {
            let Ok(line) = line else { break };
            let event: Value = serde_json::from_str(&line)?;
            if event["type"] == "ERROR" {
                // Too old: what is there is shown anew.
                version.clear();
                break;
            }
            let object = &event["object"];
            let newer = match as_objects {
                Some(_) => &object["metadata"]["resourceVersion"],
                None => object
                    .pointer("/rows/0/object/metadata/resourceVersion")
                    .unwrap_or(&object["metadata"]["resourceVersion"]),
            };
            if let Some(newer) = newer.as_str() {
                version = newer.to_owned();
            }
            if event["type"] != "BOOKMARK" {
                show(object)?;
            }
        }
    }
}
