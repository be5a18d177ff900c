//! Tests of this module: good and bad input, and what each message must name.

use super::*;
use inferd_ipc::signature::DType;
use inferd_ipc::worker_records::{Loading, PerElement};
use std::fs;

fn parse(text: &str) -> Result<Manifest, ConfigErrors> {
    Manifest::parse(&Document::from_text(Path::new("model.toml"), text))
}

fn error_of(text: &str) -> String {
    let errors = parse(text).expect_err(text);
    assert_eq!(errors.0.len(), 1, "{errors}");
    errors.to_string()
}

const WHOLE: &str = r#"
file = "policy.onnx"
backend = "tract"
sha256 = "0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef"
licence = "MIT"
source = "a wheel"
on_reload = "reset"
input_order = ["obs", "h_in"]

[dimensions]
N = 1

[inputs.obs]
dtype = "f32"
shape = [1, 3]
elements = ["roll [rad]", "pitch [rad]", "yaw [rad]"]
mean = [0, 0.5, 1]
std = 2
clip = [-5, 5]

[inputs.h_in]
allow_non_finite = true

[outputs.action]
shape = [1, 10, 2]
time_axis = 1
scale = [0.25, 0.5]
offset = 1
limits = [[-1, -inf], [1, inf]]

[outputs.h_out]

[[state]]
input = "h_in"
output = "h_out"

[[golden]]
file = "golden/steps.npz"
tolerance = 1e-5

[[golden]]
file = "more.npz"

[warm_up]
runs = 10

[options]
threads = 1
"#;

#[test]
fn a_whole_manifest_is_read_as_it_says() {
    let m = parse(WHOLE).expect("sound");
    assert_eq!(m.file.as_deref(), Some("policy.onnx"));
    assert_eq!(m.sha256.as_deref().map(|s| &s[..16]), Some("0123456789abcdef"));
    assert_eq!((m.on_reload, m.warm_up_runs, m.dimensions["N"]), (OnReload::Reset, 10, 1));
    assert_eq!(m.input_order, ["obs", "h_in"]);
    assert_eq!(m.output_order, ["action", "h_out"]);
    assert_eq!(m.order_given, [true, false]);
    let obs = &m.inputs["obs"];
    assert_eq!((obs.dtype, obs.shape.as_deref()), (Some(DType::F32), Some(&[1, 3][..])));
    assert_eq!(obs.mean, Some(PerElement::Each(vec![0.0, 0.5, 1.0])));
    assert_eq!(obs.std, Some(PerElement::All(2.0)));
    assert_eq!(obs.clip, Some([PerElement::All(-5.0), PerElement::All(5.0)]));
    assert!(m.inputs["h_in"].allow_non_finite);
    let action = &m.outputs["action"];
    assert_eq!(action.time_axis, Some(1));
    assert_eq!(action.limits.as_ref().map(|[lo, _]| lo.at(1)), Some(f64::NEG_INFINITY));
    assert_eq!(m.state, [StatePair { input: "h_in".into(), output: "h_out".into() }]);
    assert_eq!(m.golden[0], GoldenPair { file: "golden/steps.npz".into(), tolerance: 1e-5 });
    assert_eq!(m.golden[1].tolerance, 1e-4);
    assert_eq!(m.options["threads"], "1");
}

#[test]
fn the_order_of_the_tables_is_the_order_of_the_tensors_where_the_file_has_none() {
    let text = "backend = \"echo\"\n[inputs.z]\n[inputs.a]\n[outputs.b]\n";
    let source = |backend: &str| ModelSource {
        manifest: parse(text).expect("sound"),
        manifest_path: None,
        manifest_text: None,
        file: None,
        file_named: false,
        folder: "/m".into(),
        file_name: String::new(),
        backend: backend.into(),
    };
    let model = ModelConfig::new("m", Path::new("/m"));
    let config = Config::default();
    let role = WorkerRole {
        generation: 1,
        ticket: 2,
        baton_entry: 3,
        expect: None,
        validate_only: false,
        loading: Loading::Idle,
    };
    let spec = source("echo").spec(&model, &config, role.clone());
    assert_eq!((spec.input_order, spec.output_order), (vec!["z".into(), "a".into()], vec!["b".into()]));
    assert_eq!((spec.generation, spec.ticket, spec.baton_entry), (1, 2, 3));
    assert!(source("tract").spec(&model, &config, role).input_order.is_empty());
}

#[test]
fn options_of_the_configuration_win_over_those_of_the_manifest() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join(MANIFEST), "backend = \"echo\"\n[options]\na = 1\nb = 1\n").expect("written");
    let source = resolve(folder.path(), None).expect("echo needs no file");
    assert_eq!((source.file.as_deref(), source.backend.as_str()), (None, "echo"));
    let mut model = ModelConfig::new("m", folder.path());
    model.options.insert("b".into(), "2".into());
    let config = Config::default();
    let role = WorkerRole {
        generation: 1,
        ticket: 1,
        baton_entry: 0,
        expect: None,
        validate_only: true,
        loading: Loading::Idle,
    };
    let options = source.spec(&model, &config, role).options;
    assert_eq!((options["a"].as_str(), options["b"].as_str()), ("1", "2"));
}

#[test]
fn contradictions_are_refused_with_place_and_remedy() {
    let cases = [
        ("file = \"../x.onnx\"", "model.toml:1:8: `file`: \"../x.onnx\" leaves the manifest's folder"),
        ("file = \"/x.onnx\"", "give a relative name without \"..\""),
        ("sha256 = \"12\"", "give 64 hexadecimal digits"),
        ("on_reload = \"keep\"", "give \"carry\" or \"reset\""),
        ("[dimensions]\nN = 0", "dimension `N` is not a whole number from 1"),
        ("[inputs.a]\ndtype = \"float\"", "`dtype` of [inputs.a]: \"float\" is no dtype; give one of f32, f64"),
        ("[inputs.a]\nshape = [1, 0]", "a dimension of length 0"),
        ("[inputs.a]\nshape = [1,1,1,1,1,1,1,1,1]", "has 9 dimensions, over the limit of 8"),
        ("[inputs.a]\ndtype = \"f32\"\nshape = [1000000, 1000000]", "over the limit of 1073741824"),
        ("[inputs.a]\nshape = [3]\nmean = [1, 2]", "has 2 entries, but the last axis of the shape has 3"),
        ("[inputs.a]\nshape = [3]\nelements = [\"x\"]", "`elements` of [inputs.a] has 1 entries"),
        ("[inputs.a]\nmean = nan", "`mean` of [inputs.a] is empty or not a number"),
        ("[inputs.a]\nmean = \"0\"", "model.toml:2:8: `mean` of [inputs.a]: does not fit; give a number"),
        ("[inputs.a]\nstd = [1, 0]", "`std` of [inputs.a] is not above 0 everywhere"),
        ("[inputs.a]\nclip = [1, -1]", "1 is above -1 at element 0; write the lowest value first"),
        ("[inputs.a]\nclip = [0, [1, -2]]", "0 is above -2 at element 1"),
        ("[inputs.a]\nclip = [1]", "give [lowest, highest]"),
        ("[inputs.a]\nlimits = [0, 1]", "guards outputs"),
        ("[inputs.a]\ntime_axis = 0", "is for outputs; remove it"),
        ("[outputs.a]\nshape = [2]\ntime_axis = 1", "is 1, but the shape has 1 dimensions"),
        ("[inputs.a]\ndtype = \"bool\"\nscale = 2", "is bool and cannot be normalised"),
        ("input_order = [\"a\", \"a\"]", "`input_order` names \"a\" twice"),
        ("input_order = [\"a\"]\n[inputs.b]", "`input_order` leaves \"b\" out"),
        ("[[state]]\ninput = \"h\"", "`output` of [state] is missing; name the tensor"),
        (
            "[[state]]\ninput=\"h\"\noutput=\"a\"\n[[state]]\ninput=\"h\"\noutput=\"b\"",
            "model.toml:4:1: input \"h\" stands in two state pairs",
        ),
        (
            "[[state]]\ninput=\"a\"\noutput=\"h\"\n[[state]]\ninput=\"b\"\noutput=\"h\"",
            "output \"h\" stands in two state pairs",
        ),
        (
            "[inputs.h]\nshape=[2]\n[outputs.o]\nshape=[3]\n[[state]]\ninput=\"h\"\noutput=\"o\"",
            "dtypes or shapes differ",
        ),
        ("[[golden]]\ntolerance = 1e-3", "`file` of [golden] is missing"),
        ("[[golden]]\nfile = \"g.npz\"\ntolerance = 0.0", "give a finite number above 0"),
        ("[[golden]]\nfile = \"../g.npz\"", "leaves the manifest's folder"),
        ("golden = 3", "write [[golden]]"),
        ("[warm_up]\nruns = -1", "give a whole number from 0"),
        ("license = \"MIT\"", "unknown key `license`; did you mean `licence`?"),
        ("[inputs.a]\nstdd = 1", "did you mean `std`?"),
    ];
    for (text, expected) in cases {
        let error = error_of(text);
        assert!(error.contains(expected), "{text}\n  says {error}\n  not  {expected}");
    }
}

#[test]
fn too_many_golden_pairs_or_tensors_are_refused() {
    let golden: String = (0..17).map(|i| format!("[[golden]]\nfile = \"{i}.npz\"\n")).collect();
    assert!(error_of(&golden).contains("17 golden pairs, over the limit of 16"));
    let inputs: String = (0..65).map(|i| format!("[inputs.t{i}]\n")).collect();
    assert!(error_of(&inputs).contains("65 inputs in the manifest, over the limit of 64"));
}

#[test]
fn a_manifest_counts_for_a_file_only_if_it_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a.onnx"), "a").expect("written");
    fs::write(path("b.pt"), "b").expect("written");
    fs::write(path(MANIFEST), "file = \"a.onnx\"\n[warm_up]\nruns = 3\n").expect("written");
    let a = resolve(&path("a.onnx"), None).expect("sound");
    assert_eq!((a.manifest.warm_up_runs, a.backend.as_str()), (3, "tract"));
    assert_eq!(a.manifest_path, Some(path(MANIFEST)));
    let b = resolve(&path("b.pt"), None).expect("sound");
    assert_eq!((b.manifest.warm_up_runs, b.backend.as_str(), b.manifest_path), (0, "torch", None));
    let whole = resolve(folder.path(), Some("ort")).expect("sound");
    assert_eq!((whole.file, whole.backend.as_str()), (Some(path("a.onnx")), "ort"));
    // The choice is the worker's for ONNX files; others have one backend.
    let auto = |name: &str| resolve(&path(name), Some("auto")).expect("resolved").backend;
    assert_eq!((auto("a.onnx").as_str(), auto("b.pt").as_str()), ("auto", "torch"));
    assert_eq!(resolve(&path(MANIFEST), None).expect("sound").file, Some(path("a.onnx")));
    fs::write(path(MANIFEST), "file = \"a.onnx\"\nnonsense = 1\n").expect("written");
    assert!(resolve(&path("a.onnx"), None).is_err(), "its own manifest is wrong");
    assert!(resolve(&path("b.pt"), None).is_ok(), "another model's manifest is not its business");
}

#[test]
fn what_cannot_be_a_model_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("m.bin"), "x").expect("written");
    fs::create_dir(path("empty")).expect("created");
    let error = |path: &Path, backend| resolve(path, backend).expect_err("refused").to_string();
    assert!(error(Path::new("m.onnx"), None).contains("not absolute"));
    assert!(error(&path("absent.onnx"), None).contains("cannot be found"));
    assert!(error(&path("empty"), None).contains("holds no model.toml"));
    let backend = error(&path("m.bin"), None);
    assert!(backend.contains("no backend follows") && backend.contains("tract, torch, ort, echo"), "{backend}");
    assert!(error(&path("m.bin"), Some("../x")).contains("not a backend's name"));
    fs::write(path("empty/model.toml"), "backend = \"tract\"\n").expect("written");
    assert!(error(&path("empty"), None).contains("`file` is missing"));
}

#[test]
fn missing_files_of_a_manifest_are_found_by_the_check() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join(MANIFEST), "file = \"a.onnx\"\n[[golden]]\nfile = \"g.npz\"\n").expect("written");
    let errors = resolve(folder.path(), None).expect("sound in itself").check_files();
    let text: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 2, "{text:?}");
    assert!(text[0].contains("a.onnx: does not exist") && text[1].contains("g.npz: does not exist"), "{text:?}");
}

#[test]
fn a_link_is_followed_where_the_operator_named_it_and_nowhere_else() {
    let root = tempfile::tempdir().expect("a folder");
    let path = |name: &str| root.path().join(name);
    fs::create_dir(path("m")).expect("created");
    fs::write(path("blob"), "x").expect("written");
    std::os::unix::fs::symlink("../blob", path("m/a.onnx")).expect("linked");
    fs::write(path("m/model.toml"), "file = \"a.onnx\"\n").expect("written");
    assert!(resolve(&path("m/a.onnx"), None).expect("sound").check_files().is_empty());
    let errors = resolve(&path("m"), None).expect("sound").check_files();
    assert!(errors[0].to_string().contains("leads out of the model's folder"), "{errors:?}");
}
