//! The output in `docs/reload.md` is that of `inferctl`: the guide's session is played here and compared with the page.
//!
//! Numbers differ from run to run, so that the comparison takes every number for the same; words, tables and their order
//! count. `INFERD_BLESS=1` rewrites the page's blocks with the real output of the run.

use super::{LIMIT, Policies, SHAPE, STEEP, ask, model};
use inferd_ipc::layout::Backing;
use inferd_tests::{Client, Daemon, DaemonConfig, Driver, ms, onnx, places::repository, turn, within};
use std::fs;
use std::path::Path;

/// The commands of the guide, in its order; a block each.
const SESSION: [&str; 8] = [
    "reload m --path /srv/policies/v2 --shadow 64 --max-diff y=0.01 --dry-run",
    "reload m --path /srv/policies/v2 --shadow 64 --max-diff y=0.01",
    "reload m --path /srv/policies/v3 --shadow 64 --max-diff y=0.01 --max-latency 20000",
    "models",
    "history m",
    "rollback m",
    "dump m /srv/field.npz",
    "replay m /srv/field.npz",
];

/// Runs one command as the guide shows it; its output as a terminal would have it, and the exit code where it is not 0.
fn played(daemon: &Daemon, policies: &Path, words: &str) -> String {
    let (real, shown) = (policies.display().to_string(), "/srv/policies");
    let field = daemon.dir().join("field.npz").display().to_string();
    let words_real = words.replace(shown, &real).replace("/srv/field.npz", &field);
    let ran = daemon.tool("inferctl", &words_real.split(' ').collect::<Vec<_>>());
    let code = ran.code.filter(|code| *code != 0).map_or(String::new(), |code| format!("$ echo $?\n{code}\n"));
    let text = format!("$ inferctl {words}\n{}{}{code}", ran.out, ran.err);
    text.replace(&real, shown).replace(&field, "/srv/field.npz")
}

/// Every number the same, and every run of spaces and rules, whose lengths follow from numbers.
fn shape(text: &str) -> String {
    let mut out = String::new();
    let mut in_number = false;
    for c in text.chars() {
        let number = c.is_ascii_digit() || (in_number && (matches!(c, '.' | '-' | ':') || c.is_ascii_hexdigit()));
        match c {
            _ if number && in_number => {}
            _ if number => out.push('#'),
            '─' | ' ' if out.ends_with(c) => {}
            _ => out.push(c),
        }
        in_number = number;
    }
    // The unit follows from the number too.
    for unit in ["# ns", "# us", "# ms", "# s", "# B", "# KiB"] {
        out = out.replace(unit, "# unit");
    }
    while out.contains("# #") {
        out = out.replace("# #", "#");
    }
    out
}

/// The page's blocks that begin with a command of ours: where each begins and ends.
fn blocks(page: &str) -> Vec<(usize, usize)> {
    let fence = "```text\n$ inferctl ";
    page.match_indices(fence)
        .map(|(at, _)| {
            let begin = at + "```text\n".len();
            (begin, begin + page[begin..].find("```").expect("a block ends"))
        })
        .collect()
}

#[test]
fn the_guide_shows_what_inferctl_says() {
    let _turn = turn();
    let policies = Policies::new();
    let v1 = policies.add("v1", &onnx::plus_one(&SHAPE));
    policies.add("v2", &onnx::plus_one_up_to(LIMIT, &SHAPE));
    policies.add("v3", &onnx::one_plus(&SHAPE));
    let daemon = DaemonConfig::new(Backing::Memfd).model(model(&v1)).start();
    let mut robot = Driver::start(&Client::Rust.program().expect("built"), &daemon.runtime_dir());
    robot.ok("attach model=m slots=4");
    ask(&mut robot, STEEP, 64);
    let mut said = Vec::new();
    for words in SESSION {
        if words.starts_with("history") || words.starts_with("rollback") {
            within(ms(10_000), "what is live is stored", || {
                daemon.history("m").iter().all(|e| e.stored == (e.generation > 0))
            });
        }
        said.push(played(&daemon, policies.dir.path(), words));
    }
    let file = repository().join("docs/reload.md");
    let mut page = fs::read_to_string(&file).expect("docs/reload.md");
    if std::env::var_os("INFERD_BLESS").is_some() {
        for ((begin, end), text) in blocks(&page).into_iter().zip(&said).rev() {
            page.replace_range(begin..end, text);
        }
        fs::write(&file, &page).expect("docs/reload.md can be written");
    }
    let blocks = blocks(&page);
    assert_eq!(blocks.len(), SESSION.len(), "docs/reload.md shows every command of the session");
    for ((begin, end), text) in blocks.into_iter().zip(&said) {
        let shown = &page[begin..end];
        assert_eq!(shape(shown), shape(text), "docs/reload.md is old: run this test with INFERD_BLESS=1\n{text}");
    }
}
