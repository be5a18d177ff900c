//! The workspace has the crate edges of ARCHITECTURE.md, and no other; the crates that promise no `unsafe` forbid it.
//!
//! `daemon`, `worker` and `client-rs` meet only through `ipc`: a daemon that could call into a backend, or a client that
//! could call into the daemon, would soon do so. The table is read from ARCHITECTURE.md, so that the page cannot drift.

use inferd_tests::places::repository;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

type Edges = BTreeMap<String, BTreeSet<String>>;

/// `| folder | crate | responsibility | may depend on |`: package names by package; `None` stands for "all".
fn allowed_edges() -> BTreeMap<String, Option<BTreeSet<String>>> {
    let page = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is readable");
    let rows =
        page.lines().skip_while(|l| !l.starts_with("| folder | crate |")).skip(2).take_while(|l| l.starts_with('|'));
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).filter(|n| n.starts_with("inferd")).map(str::to_owned).collect()
    };
    let mut allowed = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, package, _, may_depend_on] = cells[..] else { panic!("not a row of four cells: {row}") };
        for name in names(package) {
            allowed.insert(name, (may_depend_on != "all").then(|| names(may_depend_on)));
        }
    }
    assert!(allowed.contains_key("inferd-ipc"), "ARCHITECTURE.md has no table of crates: {allowed:?}");
    allowed
}

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(repository())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON")
}

/// Edges between members of the workspace, of every kind (build and dev dependencies too), a feature's optional ones included.
fn actual_edges(metadata: &Value) -> Edges {
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |package: &Value| package["name"].as_str().expect("a package has a name").to_owned();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    // A crate whose tests want a feature of its own depends on itself; that is no edge.
    let edges_of = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("dependencies").iter().map(name);
        dependencies.filter(|d| members.contains(d) && *d != name(package)).collect()
    };
    packages.iter().map(|package| (name(package), edges_of(package))).collect()
}

#[test]
fn no_crate_depends_on_another_than_architecture_md_says() {
    let allowed = allowed_edges();
    let mut wrong = Vec::new();
    for (package, dependencies) in actual_edges(&metadata()) {
        match allowed.get(&package) {
            None => wrong.push(format!("{package} is not in ARCHITECTURE.md's table of crates")),
            Some(None) => {}
            Some(Some(may)) => wrong.extend(dependencies.difference(may).map(|to| format!("{package} -> {to}"))),
        }
    }
    assert!(wrong.is_empty(), "edges that ARCHITECTURE.md does not have; move the shared part into ipc: {wrong:?}");
}

#[test]
fn daemon_clients_and_tools_forbid_unsafe_in_every_root() {
    let metadata = metadata();
    let mut roots = 0;
    for package in metadata["packages"].as_array().expect("packages") {
        if !["inferd", "inferd-client", "inferd-tools"].contains(&package["name"].as_str().unwrap_or("")) {
            continue;
        }
        for target in package["targets"].as_array().expect("targets") {
            let kind = target["kind"][0].as_str().unwrap_or("");
            if !["lib", "bin"].contains(&kind) {
                continue;
            }
            roots += 1;
            let path = target["src_path"].as_str().expect("a target has a source");
            let source = std::fs::read_to_string(path).expect("a root is readable");
            let forbids = source.lines().any(|l| l.trim() == "#![forbid(unsafe_code)]");
            assert!(forbids, "{path} has no `#![forbid(unsafe_code)]`; what needs unsafe belongs in ipc");
        }
    }
    assert!(roots >= 4, "only {roots} roots of daemon, client and tools were found");
}
