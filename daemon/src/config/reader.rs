//! Reads a TOML file key by key, so that every error is found and has a place.
//!
//! Deriving a deserializer for a whole file stops at its first error. Here a [`Section`] hands out one
//! key after the other, notes what does not fit and goes on; [`Section::finish`] refuses the keys that
//! nobody asked for. Meaning (limits, contradictions) is the affair of `config` and `manifest`.

use super::error::{ConfigError, Place};
use inferd_ipc::limits::{CONFIG_BYTES_MAX, CONFIG_ERRORS_MAX};
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A file's text, and where its lines begin.
#[derive(Debug)]
pub struct Document {
    file: PathBuf,
    text: String,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// Missing, unreadable, too long or not UTF-8.
    pub fn read(file: &Path) -> Result<Document, ConfigError> {
        let at = |what: String, remedy: &str| ConfigError::at(Place::file(file), what, remedy);
        let unreadable = |e: std::io::Error| {
            let remedy = match e.kind() {
                std::io::ErrorKind::NotFound => "create it, or name another file",
                std::io::ErrorKind::PermissionDenied => "let the user that runs inferd read it",
                _ => "name a regular file that can be read",
            };
            at(format!("cannot be read: {e}"), remedy)
        };
        let is_file = std::fs::metadata(file).map_err(unreadable)?.is_file();
        if !is_file {
            return Err(at("is not a regular file".into(), "name a regular file that can be read"));
        }
        let mut bytes = Vec::new();
        File::open(file).and_then(|f| f.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
        if bytes.len() as u64 > CONFIG_BYTES_MAX {
            return Err(at(
                format!("is longer than {CONFIG_BYTES_MAX} bytes"),
                "shorten it, or split it into drop-ins",
            ));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            at(format!("is not UTF-8 at byte {}", e.utf8_error().valid_up_to()), "save it as UTF-8 text")
        })?;
        Ok(Document::from_text(file, &text))
    }

    /// A document that was not read from a file; `file` only names it in errors.
    #[must_use]
    pub fn from_text(file: &Path, text: &str) -> Document {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Document { file: file.to_owned(), text: text.to_owned(), lines }
    }

    /// The file's path.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where a range of bytes begins.
    #[must_use]
    pub fn place(&self, span: &Range<usize>) -> Place {
        let mut end = span.start.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let line = self.lines.partition_point(|start| *start <= end);
        let column = self.text[self.lines[line - 1]..end].chars().count() + 1;
        Place { file: self.file.clone(), line: line as u32, column: column as u32 }
    }

    /// The root section; none when the text is not TOML.
    pub fn parse(&self, errors: &mut Vec<ConfigError>) -> Option<Section<'_>> {
        let (root, faults) = DeTable::parse_recoverable(&self.text);
        if faults.is_empty() {
            return Some(Section::new(self, String::new(), root.span(), root.into_inner()));
        }
        for fault in faults.into_iter().take(CONFIG_ERRORS_MAX) {
            let place = fault.span().map_or_else(|| Place::file(&self.file), |span| self.place(&span));
            let what = format!("not TOML: {}", fault.message().trim_end());
            errors.push(ConfigError::at(place, what, "correct the syntax here (https://toml.io)"));
        }
        None
    }
}

/// A table whose keys are taken out one by one.
#[derive(Debug)]
pub struct Section<'d> {
    document: &'d Document,
    /// `models.go2`; empty for the root.
    title: String,
    span: Range<usize>,
    table: DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'d> Section<'d> {
    fn new(document: &'d Document, title: String, span: Range<usize>, table: DeTable<'d>) -> Section<'d> {
        Section { document, title, span, table, known: Vec::new() }
    }

    /// Where the section begins.
    #[must_use]
    pub fn place(&self) -> Place {
        self.document.place(&self.span)
    }

    /// Where a value stands.
    #[must_use]
    pub fn place_of<T>(&self, value: &Spanned<T>) -> Place {
        self.document.place(&value.span())
    }

    /// Notes an error at a value.
    pub fn refuse<T>(&self, value: &Spanned<T>, what: String, remedy: &str, errors: &mut Vec<ConfigError>) {
        errors.push(ConfigError::at(self.place_of(value), what, remedy));
    }

    /// `slots` of `[models.go2]`, for messages.
    #[must_use]
    pub fn key(&self, key: &str) -> String {
        if self.title.is_empty() { format!("`{key}`") } else { format!("`{key}` of [{}]", self.title) }
    }

    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'d>>> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// The value of a key, if it is there and fits; `expected` completes "give ...".
    pub fn value<T: Deserialize<'d>>(
        &mut self,
        key: &'static str,
        expected: &str,
        errors: &mut Vec<ConfigError>,
    ) -> Option<Spanned<T>> {
        let value = self.take(key)?;
        let span = value.span();
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(value) => Some(Spanned::new(span, value)),
            Err(fault) => {
                let place = self.document.place(&fault.span().filter(|s| !s.is_empty()).unwrap_or(span));
                // What serde says of an enum without tags names the Rust type and helps nobody.
                let message = fault.message().trim_end();
                let message = if message.starts_with("data did not match") { "does not fit" } else { message };
                let what = format!("{}: {message}", self.key(key));
                errors.push(ConfigError::at(place, what, format!("give {expected}")));
                None
            }
        }
    }

    /// The plain value of a key.
    pub fn plain<T: Deserialize<'d>>(
        &mut self,
        key: &'static str,
        expected: &str,
        errors: &mut Vec<ConfigError>,
    ) -> Option<T> {
        self.value(key, expected, errors).map(Spanned::into_inner)
    }

    /// A whole number within a range, both ends included.
    pub fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
        errors: &mut Vec<ConfigError>,
    ) -> Option<Spanned<i64>> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let value: Spanned<i64> = self.value(key, &expected, errors)?;
        if range.contains(value.get_ref()) {
            return Some(value);
        }
        let what = format!("{} is {}", self.key(key), value.get_ref());
        self.refuse(&value, what, &format!("give {expected}"), errors);
        None
    }

    /// A whole number from `least` to `most`.
    pub fn count(&mut self, key: &'static str, least: u64, most: u64, errors: &mut Vec<ConfigError>) -> Option<u64> {
        let range = i64::try_from(least).unwrap_or(i64::MAX)..=i64::try_from(most).unwrap_or(i64::MAX);
        self.number(key, range, errors).and_then(|v| u64::try_from(v.into_inner()).ok())
    }

    /// A table under a key.
    pub fn section(&mut self, key: &'static str, errors: &mut Vec<ConfigError>) -> Option<Section<'d>> {
        let value = self.take(key)?;
        let title = self.title_of(key);
        self.table_of(title, value, errors)
    }

    /// The tables under a key, by name, in the order of the file: `[models.a]`, `[models.b]`.
    pub fn named(&mut self, key: &'static str, errors: &mut Vec<ConfigError>) -> Vec<(Spanned<String>, Section<'d>)> {
        let Some(all) = self.section(key, errors) else { return Vec::new() };
        let mut named: Vec<_> = all.table.into_iter().collect();
        named.sort_by_key(|(name, _)| name.span().start);
        let title = self.title_of(key);
        let mut sections = Vec::new();
        for (name, value) in named {
            let name = Spanned::new(name.span(), name.get_ref().to_string());
            if let Some(section) = self.table_of(format!("{title}.{}", name.get_ref()), value, errors) {
                sections.push((name, section));
            }
        }
        sections
    }

    /// The tables of an array under a key: `[[golden]]`.
    pub fn repeated(&mut self, key: &'static str, errors: &mut Vec<ConfigError>) -> Vec<Section<'d>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let title = self.title_of(key);
        let span = value.span();
        let DeValue::Array(array) = value.into_inner() else {
            let what = format!("{} is not a list of tables", self.key(key));
            errors.push(ConfigError::at(self.document.place(&span), what, format!("write [[{title}]]")));
            return Vec::new();
        };
        array.into_iter().filter_map(|value| self.table_of(title.clone(), value, errors)).collect()
    }

    /// What is left, by name, in the order of the file: for tables with free keys (`[options]`).
    pub fn rest(mut self) -> Vec<(Spanned<String>, Spanned<DeValue<'d>>)> {
        let mut rest: Vec<_> = std::mem::take(&mut self.table)
            .into_iter()
            .map(|(name, value)| (Spanned::new(name.span(), name.get_ref().to_string()), value))
            .collect();
        rest.sort_by_key(|(name, _)| name.span().start);
        rest
    }

    /// Refuses the keys that nobody asked for.
    pub fn finish(self, errors: &mut Vec<ConfigError>) {
        for name in self.table.keys().take(CONFIG_ERRORS_MAX) {
            let place = self.document.place(&name.span());
            let near = self.known.iter().filter(|k| distance(k, name.get_ref()) <= 2);
            let near = near.min_by_key(|k| distance(k, name.get_ref()));
            let remedy = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("remove it; known here: {}", self.known.join(", ")),
            };
            errors.push(ConfigError::at(place, format!("unknown key {}", self.key(name.get_ref())), remedy));
        }
    }

    fn title_of(&self, key: &str) -> String {
        if self.title.is_empty() { key.to_owned() } else { format!("{}.{key}", self.title) }
    }

    fn table_of(
        &self,
        title: String,
        value: Spanned<DeValue<'d>>,
        errors: &mut Vec<ConfigError>,
    ) -> Option<Section<'d>> {
        let span = value.span();
        let DeValue::Table(table) = value.into_inner() else {
            let what = format!("`{title}` is not a table");
            errors.push(ConfigError::at(self.document.place(&span), what, format!("write [{title}]")));
            return None;
        };
        Some(Section::new(self.document, title, span, table))
    }
}

/// Edits between two keys (insert, remove, replace), for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Text of a free option: a string, number or truth value.
pub fn option_text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(s) => Some(s.to_string()),
        DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix()).ok().map(|i| i.to_string()),
        DeValue::Float(f) => Some(f.as_str().to_owned()),
        DeValue::Boolean(b) => Some(b.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}
