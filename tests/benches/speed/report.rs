//! Results as tables, for the terminal and for the documentation.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};

/// A table and what is to be known of it.
pub struct Section {
    title: String,
    note: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Section {
    pub fn new(title: &str, head: &[&str]) -> Self {
        let head = head.iter().map(|&name| name.to_owned()).collect();
        Section { title: title.to_owned(), note: String::new(), head, rows: Vec::new() }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub fn note(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}\n", self.title)?;
        writeln!(f, "| {} |\n|{}", self.head.join(" | "), "---|".repeat(self.head.len()))?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.join(" | "))?;
        }
        if self.note.is_empty() { Ok(()) } else { writeln!(f, "\n{}", self.note) }
    }
}

/// What the other benchmarks measured: each file of a folder is a table, each of its lines a row, a JSON
/// object, or an object of rows by their names.
pub fn others(folder: &Path) -> anyhow::Result<Vec<Section>> {
    let mut files = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    files.iter().map(|file| other(file).with_context(|| file.display().to_string())).collect()
}

fn other(file: &Path) -> anyhow::Result<Section> {
    let text = std::fs::read_to_string(file)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let objects = lines.map(serde_json::from_str).collect::<Result<Vec<Map<String, Value>>, _>>()?;
    let rows: Vec<Map<String, Value>> = objects.into_iter().flat_map(rows).collect();
    let mut keys: Vec<&String> = Vec::new();
    for key in rows.iter().flat_map(Map::keys) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    // A map has them by the alphabet.
    keys.sort_by_key(|key| *key != "what");
    let head: Vec<String> = keys.iter().map(|key| key.replace('_', " ")).collect();
    let title = file.file_stem().unwrap_or_default().to_string_lossy();
    let mut section = Section::new(&title, &head.iter().map(String::as_str).collect::<Vec<_>>());
    section.rows = rows.iter().map(|row| keys.iter().map(|&key| cell(row.get(key))).collect()).collect();
    Ok(section)
}

fn rows(object: Map<String, Value>) -> Vec<Map<String, Value>> {
    if !object.values().all(Value::is_object) {
        return vec![object];
    }
    let named = object.into_iter().filter_map(|(name, row)| match row {
        Value::Object(mut row) => {
            row.insert("what".to_owned(), name.into());
            Some(row)
        }
        _ => None,
    });
    named.collect()
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(number) if number.abs() >= 100.0 => amount(number),
            Some(number) => format!("{number:.2}"),
            None => number.to_string(),
        },
        Some(other) => other.to_string(),
    }
}

/// Three digits of a speed are more than what two measurements have in common.
pub fn rate(events_a_second: f64) -> String {
    let magnitude = 10_f64.powf(events_a_second.max(1.0).log10().floor() - 2.0).max(1.0);
    amount((events_a_second / magnitude).round() * magnitude)
}

/// `1,234,567`
pub fn amount(number: impl Into<Amount>) -> String {
    let digits = number.into().0.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What is counted.
pub struct Amount(u64);

impl From<f64> for Amount {
    fn from(number: f64) -> Self {
        Amount(number.round() as u64)
    }
}

impl From<usize> for Amount {
    fn from(number: usize) -> Self {
        Amount(number as u64)
    }
}

impl From<u64> for Amount {
    fn from(number: u64) -> Self {
        Amount(number)
    }
}
