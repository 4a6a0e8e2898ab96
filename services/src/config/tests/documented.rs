//! docs/configuration.md, compared with the schema and the options.

use schema::Shape;

use super::*;

/// The word of the document for a shape.
fn word(shape: Shape) -> &'static str {
    match shape {
        Shape::Text => "text",
        Shape::Duration => "duration",
        Shape::Size => "size",
        Shape::Rate => "rate",
        Shape::Integer => "integer",
        Shape::Float => "number",
        Shape::Bool => "boolean",
        Shape::List => "list",
        Shape::TextOrTable(_) => "text or table",
        Shape::Table(_) | Shape::Map => "table",
        Shape::Tables(_) => "tables",
    }
}

/// The page for users names every key that a file may have.
#[test]
fn every_key_is_documented() {
    fn names(keys: &[schema::Key], found: &mut Vec<&'static str>) {
        for key in keys {
            match key.shape {
                Shape::Table(inner) | Shape::Tables(inner) | Shape::TextOrTable(inner) => {
                    names(inner, found);
                }
                _ => {}
            }
            found.push(key.name);
        }
    }
    let page = include_str!("../../../../docs/configuration.md");
    let mut found = Vec::new();
    names(schema::ROOT, &mut found);
    let words: Vec<_> = page.split(|char: char| !char.is_ascii_alphanumeric() && char != '_').collect();
    let missing: Vec<_> = found.into_iter().filter(|name| !words.contains(name)).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not name {missing:?}");
}

/// The types of docs/configuration.md are those of the schema, which says how an environment variable is read.
#[test]
fn documented_types_are_those_of_the_schema() {
    fn of_name(keys: &[schema::Key], name: &str, found: &mut Vec<&'static str>) {
        for key in keys {
            if key.name == name {
                found.push(word(key.shape));
            }
            if let Shape::Table(inner) | Shape::Tables(inner) = key.shape {
                of_name(inner, name, found);
            }
        }
    }
    let mut section = schema::ROOT;
    let mut rows = 0;
    for line in include_str!("../../../../docs/configuration.md").lines() {
        if let Some(heading) = line.strip_prefix("## `[") {
            let name = heading.trim_start_matches('[').split(']').next().unwrap_or_default();
            section = match schema::find(schema::ROOT, name).map(|key| key.shape) {
                Some(Shape::Table(keys) | Shape::Tables(keys)) => keys,
                // Two small sections share a table.
                _ => schema::ROOT,
            };
            if heading.contains("and `[") {
                section = schema::ROOT;
            }
        }
        let cells: Vec<_> = line.split(" | ").collect();
        let [names, types, ..] = cells[..] else { continue };
        let Some(names) = names.strip_prefix("| `") else { continue };
        rows += 1;
        for name in names.split(" of ").next().unwrap_or_default().split(", ").map(|name| name.trim_matches('`')) {
            let mut known = Vec::new();
            of_name(section, name, &mut known);
            assert!(
                known.iter().any(|word| types.split(", ").any(|documented| documented == *word)),
                "{line}: {known:?}"
            );
        }
    }
    assert!(rows > 80, "the page has its tables: {rows} rows");
}

/// Durations, sizes and rates of the schema are those of the options.
#[test]
fn values_with_a_unit_are_refused_without_one() {
    fn each(keys: &[schema::Key], path: &str, checked: &mut usize) {
        for key in keys {
            let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            match key.shape {
                Shape::Duration | Shape::Size | Shape::Rate => {
                    *checked += 1;
                    let parsed = Config::parse(Path::new("weft.toml"), format!("{path} = \"zzz\"\n"), [], None);
                    let error = parsed.map(drop).unwrap_err().to_string();
                    assert!(error.contains("zzz"), "{path}: {error}");
                }
                Shape::Table(inner) => each(inner, &path, checked),
                _ => {}
            }
        }
    }
    let mut checked = 0;
    each(schema::ROOT, "", &mut checked);
    assert!(checked > 10, "{checked} keys");
}
