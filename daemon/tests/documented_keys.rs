//! `docs/configuration.md` and the examples say what the daemon reads.
//!
//! The keys of every table in the docs are compared with those that the daemon lists when it refuses an
//! unknown one, so neither can grow without the other.

use inferd::config::reader::Document;
use inferd::config::{Config, Overrides};
use inferd::manifest::Manifest;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The keys that the docs list below a heading: the words in backticks in the first column.
fn documented(heading: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs/configuration.md")).expect("the docs");
    let is_heading = |line: &str| line.starts_with('#');
    let mut lines = text.lines().skip_while(|line| line.trim_start_matches(['#', ' ']) != heading);
    assert!(lines.next().is_some(), "docs/configuration.md has no heading {heading}");
    let rows = lines.take_while(|line| !is_heading(line)).filter(|line| line.starts_with("| `"));
    let first = rows.filter_map(|row| row.split('|').nth(1));
    first.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// What a refusal lists as known.
fn known(errors: &str) -> BTreeSet<String> {
    let list = errors.lines().find_map(|line| line.split_once("known here: ")).expect(errors).1;
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_docs_list_every_key_of_the_configuration_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("inferd.toml");
    let refusal = |text: &str| {
        std::fs::write(&file, text).expect("written");
        Config::load(Some(&file), &Overrides::default()).expect_err(text).to_string()
    };
    for (heading, text) in [
        ("`inferd.toml`", "zzzzzzzz = 1\n"),
        ("`[daemon]`", "[daemon]\nzzzzzzzz = 1\n"),
        ("`[ipc]`", "[ipc]\nzzzzzzzz = 1\n"),
        ("`[worker]`", "[worker]\nzzzzzzzz = 1\n"),
        ("`[quota]`", "[quota]\nzzzzzzzz = 1\n"),
        ("`[models.NAME]`", "[models.a]\npath = \"/m\"\nzzzzzzzz = 1\n"),
        ("`[models.NAME.gate]`", "[models.a]\npath = \"/m\"\n[models.a.gate]\nzzzzzzzz = 1\n"),
    ] {
        assert_eq!(documented(heading), known(&refusal(text)), "docs/configuration.md, {heading}");
    }
}

#[test]
fn the_docs_list_every_key_of_the_manifest_and_no_other() {
    for (heading, text) in [
        ("`model.toml`", "zzzzzzzz = 1\n"),
        ("`[inputs.NAME]`", "[inputs.a]\nzzzzzzzz = 1\n"),
        ("`[outputs.NAME]`", "[outputs.a]\nzzzzzzzz = 1\n"),
        ("`[[state]]`", "[[state]]\ninput = \"a\"\noutput = \"b\"\nzzzzzzzz = 1\n"),
        ("`[[golden]]`", "[[golden]]\nfile = \"a\"\nzzzzzzzz = 1\n"),
        ("`[warm_up]`", "[warm_up]\nzzzzzzzz = 1\n"),
    ] {
        let errors = Manifest::parse(&Document::from_text(Path::new("model.toml"), text)).expect_err(text);
        assert_eq!(documented(heading), known(&errors.to_string()), "docs/configuration.md, {heading}");
    }
}

#[test]
fn the_examples_are_sound() {
    let mut manifests = 0;
    for folder in std::fs::read_dir(root().join("examples/models")).expect("examples").flatten() {
        let file = folder.path().join("model.toml");
        if file.exists() {
            Manifest::read(&file).unwrap_or_else(|errors| panic!("{errors}"));
            manifests += 1;
        }
    }
    assert!(manifests > 0, "examples/models holds no manifest");
    let example = root().join("examples/config/inferd.toml");
    let config = Config::load(Some(&example), &Overrides::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(!config.models.is_empty());
}
