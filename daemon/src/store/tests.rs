//! Tests of this module: what a restart finds, what is evicted, and what a bad disk does.

use super::*;
use crate::staging::text_into_memory;
use inferd_ipc::control::{HistoryEntry, HistoryVerdict};
use inferd_ipc::limits::HISTORY_ENTRIES_MAX;
use std::time::{Duration, Instant};

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, generations: 8 };

fn entry(generation: u32, at_unix_ms: u64, text: &str) -> Entry {
    let blob = text_blob(text);
    Entry {
        shown: HistoryEntry {
            generation,
            sha256: blob.sha256.clone(),
            path: "/m/policy.onnx".into(),
            backend: "tract".into(),
            at_unix_ms,
            went_live_unix_ms: (generation > 0).then_some(at_unix_ms),
            by_uid: Some(7),
            cause: "reload".into(),
            verdict: HistoryVerdict { accepted: generation > 0, ..HistoryVerdict::default() },
            ended: None,
            ended_unix_ms: None,
            stored: false,
        },
        configured_path: Some("/m/policy.onnx".into()),
        files: Some(StoredFiles {
            manifest: None,
            model: Some(blob),
            file: Some("/m/policy.onnx".into()),
            file_name: "policy.onnx".into(),
            file_named: true,
            folder: "/m".into(),
            more: BTreeMap::new(),
        }),
        key: 0,
    }
}

fn files(text: &str) -> Vec<ToKeep> {
    vec![ToKeep { blob: text_blob(text), fd: text_into_memory("test", text).expect("a memfd") }]
}

/// Waits until what was submitted is done.
fn settle(store: &mut Store) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !store.keeping.is_empty() {
        assert!(Instant::now() < deadline, "the thread works");
        store.take_done();
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn goes_live(store: &mut Store, generation: u32, text: &str) {
    let at = u64::from(generation);
    store.went_live("m", entry(generation, at, text), &format!("replaced by {generation}"), files(text));
    settle(store);
}

fn stored(store: &Store) -> Vec<u32> {
    store.books["m"].shown().filter(|e| e.stored).map(|e| e.generation).collect()
}

#[test]
fn a_restart_finds_what_served_last_and_the_files_of_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(dir.path(), BOUNDS).expect("a thread");
    goes_live(&mut store, 1, "one");
    store.refused("m", entry(0, 2, "bad"));
    goes_live(&mut store, 3, "three");
    drop(store);
    let store = Store::open(dir.path(), BOUNDS).expect("a thread");
    let book = store.book("m").expect("a history");
    let live = book.live().expect("it served");
    assert_eq!((live.shown.generation, live.shown.stored, book.last_number()), (3, true, 3));
    assert_eq!(book.previous().expect("stored").shown.generation, 1);
    let shown: Vec<_> = book.shown().map(|e| (e.generation, e.ended.clone())).collect();
    assert_eq!(shown, [(3, None), (0, None), (1, Some("replaced by 3".into()))]);
    let blob = live.blobs().next().expect("a file");
    let path = store.blob_path(blob).expect("a store");
    assert_eq!(std::fs::read_to_string(path).expect("kept"), "three");
}

#[test]
fn generations_that_go_live_within_one_millisecond_are_both_stored() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(dir.path(), BOUNDS).expect("a thread");
    for (generation, text) in [(1, "one"), (2, "two")] {
        store.went_live("m", entry(generation, 5, text), "replaced", files(text));
    }
    settle(&mut store);
    assert_eq!(stored(&store), [2, 1]);
}

#[test]
fn the_oldest_go_first_and_the_live_one_and_the_one_before_never() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(dir.path(), Bounds { generations: 3, ..BOUNDS }).expect("a thread");
    (1..=5).for_each(|n| goes_live(&mut store, n, &format!("text {n}")));
    assert_eq!(stored(&store), [5, 4, 3]);
    store.set_bounds(Bounds { bytes: 1, generations: 8 });
    goes_live(&mut store, 6, "text 6");
    assert_eq!(stored(&store), [5], "what does not fit is not stored; of the rest only the previous one stays");
    drop(store);
    let left = std::fs::read_dir(dir.path().join("blobs")).expect("a folder").count();
    assert_eq!(left, 1, "evicted files are gone");
}

#[test]
fn a_store_that_cannot_be_written_keeps_the_history_in_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("file"), "").expect("written");
    let mut store = Store::open(&dir.path().join("file"), BOUNDS).expect("a thread");
    assert_eq!(store.dir(), None);
    goes_live(&mut store, 1, "one");
    assert_eq!(store.book("m").expect("in memory").shown().count(), 1);
    assert_eq!(stored(&store), [0; 0]);
}

#[test]
fn a_second_daemon_leaves_the_store_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = Store::open(dir.path(), BOUNDS).expect("a thread");
    assert_eq!(Store::open(dir.path(), BOUNDS).expect("a thread").dir(), None);
    drop(first);
    assert!(Store::open(dir.path(), BOUNDS).expect("a thread").dir().is_some());
}

#[test]
fn a_disk_that_fails_stores_nothing_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(dir.path(), BOUNDS).expect("a thread");
    std::fs::remove_dir(dir.path().join("blobs")).expect("removed");
    goes_live(&mut store, 1, "one");
    assert_eq!(stored(&store), [0; 0]);
    assert!(store.complaint.as_deref().is_some_and(|what| what.contains("--state-dir")), "{:?}", store.complaint);
    std::fs::create_dir(dir.path().join("blobs")).expect("created");
    goes_live(&mut store, 2, "two");
    assert_eq!(stored(&store), [2], "it recovers");
}

#[test]
fn a_damaged_blob_is_found_by_its_hash_and_written_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let blob = text_blob("one");
    let keep = || blobs::keep(dir.path(), files("one").remove(0));
    std::fs::create_dir(dir.path().join("blobs")).expect("created");
    keep().expect("written");
    let path = blobs::path(dir.path(), &blob.sha256);
    assert_eq!(blobs::read_text(&path, &blob, 100).expect("whole"), "one");
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, "oNe").expect("damaged");
    assert!(blobs::read_text(&path, &blob, 100).expect_err("damaged").contains("damaged"));
    keep().expect("written again");
    assert_eq!(blobs::read_text(&path, &blob, 100).expect("whole"), "one");
}

#[test]
fn a_line_that_was_cut_is_left_out_and_the_others_count() {
    let mut book = Book::default();
    book.add(entry(1, 1, "one"));
    book.add(entry(2, 2, "two"));
    let text = book.text();
    let (read, damaged) = Book::parse(&text);
    assert_eq!((&read, damaged), (&book, 0));
    let (read, damaged) = Book::parse(&text[..text.len() - 20]);
    assert_eq!((read.shown().count(), damaged), (1, 1));
}

#[test]
fn a_book_is_bounded_and_forgets_refused_attempts_first() {
    let mut book = Book::default();
    book.add(entry(1, 1, "one"));
    for i in 0..HISTORY_ENTRIES_MAX as u64 + 50 {
        book.add(entry(0, 10 + i, "bad"));
    }
    assert_eq!(book.shown().count(), HISTORY_ENTRIES_MAX);
    assert_eq!(book.live().map(|e| e.shown.generation), Some(1), "what serves is never forgotten");
}
