//! What operators see, with made-up answers; the expected text is in `testdata/`.

use super::*;
use inferd_client::{DType, Queue};
use serde_json::json;

fn go2() -> ModelAnswer {
    let mut action = TensorSpec::new("actions", DType::F32, &[1, 12]);
    action.elements = "FL_hip [rad]\nFL_thigh [rad]\nFL_calf [rad]\nFR_hip [rad]".into();
    let signature = Signature {
        inputs: vec![TensorSpec::new("obs", DType::F32, &[1, 45])],
        outputs: vec![action],
        stateful: false,
    };
    ModelAnswer {
        model: "go2".into(),
        state: "live".into(),
        message: None,
        generation: 2,
        kept_generation: Some(1),
        kept: Some("alive".into()),
        drift: None,
        backend: "tract 0.23.1".into(),
        path: "/var/lib/inferd/models/go2".into(),
        live_path: None,
        sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
        signature: Some(signature),
        queue: Queue::Latest,
        slots: 4,
        sessions: 2,
        worker_pid: Some(4711),
        worker_deaths: 1,
        worker_rss_bytes: 14_300_000,
        load_ms: 83.21,
        warnings: vec!["SCHED_FIFO is not allowed; set LimitRTPRIO".into()],
    }
}

fn lstm() -> ModelAnswer {
    ModelAnswer {
        model: "g1_lstm".into(),
        state: "quarantined".into(),
        message: Some("its workers died 5 times in 60 s; mend the model and reload".into()),
        generation: 1,
        kept_generation: None,
        kept: None,
        queue: Queue::InOrder,
        worker_pid: None,
        worker_rss_bytes: 0,
        worker_deaths: 5,
        sessions: 0,
        live_path: Some("/tmp/other.onnx".into()),
        warnings: vec![],
        signature: None,
        ..go2()
    }
}

#[test]
fn a_models_table_shows_what_is_wrong_below() {
    let text = models(&[go2(), lstm()]);
    assert_eq!(text, include_str!("../testdata/models.txt"), "\n{text}");
    assert!(models(&[]).contains("inferctl load"));
}

#[test]
fn one_model_shows_its_signature() {
    let text = model(&go2());
    assert_eq!(text, include_str!("../testdata/model.txt"), "\n{text}");
}

#[test]
fn status_says_it_in_ten_lines() {
    let s = StatusAnswer {
        state: "ready".into(),
        pid: 4700,
        version: "0.1.0".into(),
        uptime_s: 18_181.0,
        ready_ms: Some(212.4),
        models: BTreeMap::from([("live".into(), 1), ("quarantined".into(), 1)]),
        sessions: 2,
        runtime_dir: "/run/inferd".into(),
        state_dir: Some("/var/lib/inferd".into()),
        backing: Backing::Memfd,
        rss_bytes: 6_400_000,
    };
    let text = status(&s);
    assert_eq!(text, include_str!("../testdata/status.txt"), "\n{text}");
}

#[test]
fn stats_show_stages_and_outcomes() {
    let stage = |p50: u64| json!({ "count": 60_000, "p50_ns": p50, "p99_ns": p50 * 2, "p999_ns": p50 * 9, "max_ns": 1_400_000 });
    let answer = json!({ "go2": {
        "outcomes": { "ok": 59_990, "expired": 10, "rejected": 0 },
        "queue": stage(610), "model": stage(11_200), "sleeps": 59_120, "sessions": { "1": 30_000, "2": 30_000 },
    }});
    let text = stats(&serde_json::from_value::<StatsAnswer>(answer).unwrap_or_default());
    assert_eq!(text, include_str!("../testdata/stats.txt"), "\n{text}");
}

#[test]
fn sessions_and_limits_read_well() {
    let session = SessionAnswer {
        session: 12,
        model: "go2".into(),
        uid: 1000,
        pid: 5120,
        queue: Queue::Latest,
        slots: 4,
        region_bytes: 20_480,
        age_s: 75.2,
    };
    let limit = BTreeMap::from([("ATTACH_GRACE_MS".to_owned(), 2_000), ("TENSOR_BYTES_MAX".to_owned(), 1 << 30)]);
    let text = [sessions(&[session]), limits(&limit)].join("\n");
    assert_eq!(text, include_str!("../testdata/lists.txt"), "\n{text}");
    assert_eq!(sessions(&[]), "no sessions\n");
}
