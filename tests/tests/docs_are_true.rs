//! The pages that repeat code are compared with it: limits, specification, threat model, semantics, control commands, README.
//!
//! `INFERD_BLESS=1` rewrites docs/limits.md, the one page that is generated. The keys of docs/configuration.md are the
//! affair of daemon/tests/documented_keys.rs, which asks the daemon's own reader.

use inferd_ipc::limits::TABLE;
use inferd_tests::places::repository;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Texts between backquotes.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Constants of limits.rs in their order, with their doc comments in one line.
fn documented_limits() -> Vec<(String, String)> {
    let mut limits = Vec::new();
    let mut doc = Vec::new();
    for line in read("ipc/src/limits.rs").lines() {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim().to_owned());
        } else if let Some(constant) = line.strip_prefix("pub const ") {
            let name = constant.split(':').next().unwrap_or("").to_owned();
            limits.push((name, std::mem::take(&mut doc).join(" ").replace('|', "\\|")));
        } else {
            doc.clear();
        }
    }
    limits
}

fn limits_page() -> String {
    let values: BTreeMap<&str, u64> = TABLE.iter().map(|l| (l.name, l.value)).collect();
    let mut page = String::from(
        "# Limits\n\nEvery bound on a count, a size or a wait. Generated from `ipc/src/limits.rs` by\n\
         `INFERD_BLESS=1 cargo test --release -p inferd-tests --test docs_are_true`; a running daemon prints them with\n\
         `inferctl limits`. The unit ends the name.\n\n| limit | value | what it bounds |\n| --- | ---: | --- |\n",
    );
    for (name, doc) in documented_limits() {
        let value = values.get(name.as_str()).unwrap_or_else(|| panic!("{name} is missing in limits::TABLE"));
        page += &format!("| `{}` | {value} | {doc} |\n", name.to_lowercase());
    }
    page
}

#[test]
fn limits_md_is_what_limits_rs_says() {
    let page = limits_page();
    if std::env::var_os("INFERD_BLESS").is_some() {
        fs::write(repository().join("docs/limits.md"), &page).expect("docs/limits.md can be written");
    }
    assert!(read("docs/limits.md") == page, "docs/limits.md is old: run this test with INFERD_BLESS=1");
    assert_eq!(documented_limits().len(), TABLE.len(), "limits::TABLE has a name that is no constant of limits.rs");
}

/// A constant in a line of code: its name, type and value.
fn constant(line: &str) -> Option<(&str, &str, &str)> {
    let line = line.trim_start();
    let visible = line.strip_prefix("pub").map_or(line, |rest| rest.split_once(' ').map_or(rest, |(_, rest)| rest));
    let (name, rest) = visible.strip_prefix("const ")?.split_once(':')?;
    let (kind, value) = rest.split_once('=')?;
    Some((name, kind.trim(), value.trim()))
}

/// Whether a constant bounds a count, a size or a wait, by its name and type, and says so by a number of its own.
fn is_bound(name: &str, kind: &str, value: &str) -> bool {
    let ends =
        ["_MAX", "_MIN", "_MS", "_US", "_NS", "_TIMEOUT", "_PAUSE", "_PER_TURN", "_STACK_BYTES", "_CHARS", "_DEPTH"];
    let named = ends.iter().any(|end| name.ends_with(end)) || kind.ends_with("Duration");
    let words = || value.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let derived = words().any(|word| TABLE.iter().any(|limit| limit.name == word)) || value.contains("offset_of!");
    named && !derived && value.contains(|c: char| c.is_ascii_digit())
}

#[test]
fn no_bound_stands_outside_limits_rs() {
    assert_eq!(constant("pub(super) const A_MAX: u32 = 1 << 3;"), Some(("A_MAX", "u32", "1 << 3;")));
    assert!(is_bound("A_MAX", "u32", "1 << 3;") && is_bound("SLICE", "Duration", "Duration::from_millis(5);"));
    assert!(!is_bound("A_NS", "u64", "DRIFT_MS * 1_000;") && !is_bound("ALIGN", "usize", "64;"));
    // Tools have ways of showing things too: only what they read is bounded there.
    let crates = ["ipc", "daemon", "worker", "worker-ort", "worker-torch", "client-rs", "tools"];
    let mut folders: Vec<_> = crates.iter().map(|c| repository().join(c).join("src")).collect();
    let (mut seen, mut outside) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten() {
            let path = entry.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("").to_owned();
            // The walk is a test, with numbers of its own so that the code's are noticed when they change.
            if name.starts_with("walk") || name.starts_with("tests") || name.ends_with("limits.rs") {
                continue;
            } else if path.is_dir() {
                folders.push(path);
                continue;
            }
            seen += 1;
            let source = fs::read_to_string(&path).expect("a source is UTF-8");
            let shipped = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
            let is_tool = path.starts_with(repository().join("tools"));
            let bounds = shipped.lines().filter_map(constant).filter(|(name, kind, value)| {
                is_bound(name, kind, value) && (!is_tool || name.ends_with("_BYTES_MAX"))
            });
            outside.extend(bounds.map(|(name, _, _)| format!("{}: {name}", path.display())));
        }
    }
    assert!(seen > 100, "only {seen} sources");
    assert!(outside.is_empty(), "these belong into ipc/src/limits.rs: {outside:#?}");
}

#[test]
fn the_c_client_repeats_its_limits_as_they_are() {
    let page = read("client-c/layout.h");
    let part = page.split("/* Limits of ipc/src/limits.rs").nth(1).and_then(|rest| rest.split("\n\n").next());
    let number = |text: &str| -> u64 {
        let plain = text.replace("UINT64_C", "").replace("UINT32_C", "").replace(['(', ')', 'u'], "");
        let mut parts = plain.split("<<").map(|part| part.trim().parse::<u64>().expect("a number"));
        parts.next().map(|first| parts.fold(first, |value, by| value << by)).expect("a number")
    };
    let lines = part.expect("its limits stand together").lines().filter_map(|line| line.strip_prefix("#define IFD_"));
    let mut repeated: Vec<(String, u64)> = lines
        .map(|line| line.split_once(' ').map(|(name, value)| (name.to_owned(), number(value))).expect("a value"))
        .collect();
    for line in read("include/inferd.h").lines().filter_map(|line| line.strip_prefix("#define INFERD_")) {
        let Some((name, value)) = line.split_once(' ').filter(|(name, _)| name.ends_with("_MAX")) else { continue };
        let value = number(value.split_whitespace().next().expect("a value"));
        let names =
            if name == "NAME_BYTES_MAX" { vec!["MODEL_NAME_BYTES_MAX", "TENSOR_NAME_BYTES_MAX"] } else { vec![name] };
        repeated.extend(names.into_iter().map(|name| (name.to_owned(), value)));
    }
    assert!(repeated.len() >= 20, "only {repeated:?}");
    for (name, value) in repeated {
        let limit = TABLE.iter().find(|limit| limit.name == name).unwrap_or_else(|| panic!("{name} is no limit"));
        assert_eq!(limit.value, value, "{name} in C");
    }
}

/// Names of functions in the tests of the workspace; `scenarios!` takes them as plain `fn`s too.
fn test_names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![repository().join("tests/tests"), repository().join("tests/src")];
    for member in ["ipc", "daemon", "worker", "worker-ort", "worker-torch", "client-rs", "tools"] {
        folders.extend(["src", "tests"].map(|part| repository().join(member).join(part)));
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let source = fs::read_to_string(&path).expect("a source is UTF-8");
                let functions =
                    source.lines().filter_map(|l| l.trim_start().trim_start_matches("pub ").strip_prefix("fn "));
                names.extend(functions.map(|f| f.split(['(', '<']).next().unwrap_or("").to_owned()));
            }
        }
    }
    names
}

#[test]
fn every_row_and_rule_of_semantics_md_is_held_by_tests_that_exist() {
    let page = read("docs/semantics.md");
    let tests = test_names();
    let (mut rows, mut rules, mut wrong) = (0, 0, Vec::new());
    let mut check = |place: &str, held_by: &str| {
        let names: Vec<&str> = quoted(held_by).filter(|n| n.contains('_') && !n.contains(['.', '/'])).collect();
        if names.is_empty() {
            wrong.push(format!("{place}: held by nothing"));
        }
        let absent = names.iter().filter(|n| !tests.contains(**n));
        wrong.extend(absent.map(|n| format!("{place}: there is no test `{n}`")));
    };
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("| `") {
            rows += 1;
            let cell = line.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap_or("");
            check(line.split('|').nth(1).unwrap_or("").trim(), cell);
        } else if let Some(held_by) = line.trim_start().strip_prefix("Held by:") {
            rules += 1;
            let mut held_by = held_by.to_owned();
            while let Some(more) = lines.next_if(|l| l.trim_start().starts_with('`')) {
                held_by += more;
            }
            check(&format!("rule {rules}"), &held_by);
        }
    }
    assert_eq!((rows, rules), (11, 10), "semantics.md has 11 outcomes and 10 rules, each with what holds it");
    assert!(wrong.is_empty(), "docs/semantics.md: {wrong:#?}");
}

/// What a cell says holds something, where nothing of that name exists.
fn holds_nothing(held_by: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut found = 0;
    let mut wrong = Vec::new();
    for name in quoted(held_by) {
        found += 1;
        let is_there = match name.contains('/') {
            true => repository().join(name).exists(),
            false => tests.contains(name) || repository().join(format!("tests/benches/{name}.rs")).exists(),
        };
        if !is_there {
            wrong.push(format!("there is no `{name}`"));
        }
    }
    if found == 0 && !held_by.contains("](") {
        wrong.push(format!("held by nothing: {held_by}"));
    }
    wrong
}

/// Cells of a table's rows that begin with a quoted name and a value: name, value, and what holds it.
fn valued_rows(page: &str) -> Vec<(String, u64, String)> {
    let of = |line: &str| {
        let cells: Vec<&str> = line.trim_end_matches(['|', ' ']).split('|').map(str::trim).collect();
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        Some((name.to_owned(), cells.get(2)?.parse().ok()?, (*cells.last()?).to_owned()))
    };
    page.lines().filter_map(of).collect()
}

#[test]
fn the_specification_lists_every_number_with_its_value_and_what_holds_it() {
    let page = read("docs/specification.md");
    let tests = test_names();
    let listed = valued_rows(&page);
    let promised = inferd_tests::promises::TABLE.iter().map(|(name, value)| ((*name).to_owned(), *value));
    let due: Vec<(String, u64)> = promised.chain(TABLE.iter().map(|l| (l.name.to_lowercase(), l.value))).collect();
    let mut wrong = Vec::new();
    for (name, value) in &due {
        match listed.iter().filter(|row| row.0 == *name).collect::<Vec<_>>()[..] {
            [(_, says, held_by)] => {
                if says != value {
                    wrong.push(format!("{name} is {value}, not {says}"));
                }
                wrong.extend(holds_nothing(held_by, &tests).into_iter().map(|what| format!("{name}: {what}")));
                let file = held_by.strip_prefix("code: ").and_then(|rest| quoted(rest).next());
                if file.is_some_and(|file| !read(file).contains(&name.to_uppercase())) {
                    wrong.push(format!("{name}: its file does not use it"));
                }
            }
            ref rows => wrong.push(format!("{name} has {} rows", rows.len())),
        }
    }
    let known = |name: &String| due.iter().any(|(due, _)| due == name);
    wrong.extend(listed.iter().filter(|row| !known(&row.0)).map(|row| format!("{} is no number of the code", row.0)));
    let bars: Vec<&str> = page.lines().filter(|line| line.contains("| bench `")).collect();
    let absent = |line: &&str| holds_nothing(line.rsplit("bench").next().unwrap_or(""), &tests);
    wrong.extend(bars.iter().flat_map(absent));
    assert!(wrong.is_empty() && bars.len() >= 5, "docs/specification.md: {wrong:#?}");
}

#[test]
fn every_line_of_the_threat_model_is_held_by_tests_that_exist() {
    let page = read("docs/threat-model.md");
    let tests = test_names();
    let (mut promises, mut rows, mut mechanisms, mut wrong) = (0, 0, 0, Vec::new());
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_end_matches(['|', ' ']).split('|').map(str::trim).collect();
        let (first, last) = (cells[1], cells[cells.len() - 1]);
        match (cells.len(), first.parse::<u32>()) {
            (_, Err(_)) if ["#", "row", "mechanism"].contains(&first) || first.starts_with('-') => continue,
            (4, Ok(_)) => promises += 1,
            (5, Ok(_)) => rows += 1,
            (3, Err(_)) => mechanisms += 1,
            _ => wrong.push(format!("what table is this of? {line}")),
        }
        wrong.extend(holds_nothing(last, &tests).into_iter().map(|what| format!("{first}: {what}")));
    }
    assert_eq!((promises, rows), (7, 14), "seven promises, fourteen kinds of tests");
    assert!(mechanisms >= 10 && wrong.is_empty(), "docs/threat-model.md: {wrong:#?}");
}

#[test]
fn every_command_of_the_control_socket_is_documented() {
    let page = read("docs/control.md");
    let source = read("ipc/src/control.rs");
    let body = source.split("pub enum Command {").nth(1).and_then(|s| s.split("\n}").next()).expect("enum Command");
    let variants = body.lines().filter_map(|l| l.strip_prefix("    ")).filter(|l| l.starts_with(char::is_uppercase));
    let mut names: Vec<String> =
        variants.map(|v| v.split([' ', '{', ',', '(']).next().unwrap_or("").to_lowercase()).collect();
    names.sort();
    assert!(names.len() >= 14, "only {names:?}");
    for name in names {
        assert!(page.lines().any(|l| l.starts_with(&format!("| `{name}`"))), "docs/control.md has no row for `{name}`");
    }
}

/// Blocks of a page that are marked as this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or("").to_owned()).collect()
}

#[test]
fn the_c_program_of_the_readme_compiles_without_a_warning() {
    let programs = blocks(&read("README.md"), "c");
    assert_eq!(programs.len(), 1);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = dir.path().join("robot.c");
    fs::write(&source, &programs[0]).expect("a source can be written");
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let arguments = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-fsyntax-only"];
    let output = Command::new(cc).args(arguments).arg("-I").arg(repository().join("include")).arg(&source).output();
    let output = output.expect("a C compiler is one of the few things that the build needs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_page_that_a_page_links_to_exists() {
    let mut pages: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned).into();
    for folder in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(repository().join(folder)).expect("docs are there").flatten();
        let names = entries.map(|e| format!("{folder}/{}", e.file_name().to_string_lossy()));
        pages.extend(names.filter(|n| n.ends_with(".md")));
    }
    let mut wrong = Vec::new();
    for page in pages {
        let text = read(&page);
        let folder = Path::new(&page).parent().unwrap_or(Path::new("")).to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or("");
            if !file.is_empty() && !target.contains("://") && !repository().join(&folder).join(file).exists() {
                wrong.push(format!("{page} links to {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
