//! The keys of `model.toml`, what each may be, and what contradicts what.

use super::Manifest;
use crate::config::reader::{Document, Section};
use crate::config::{self, ConfigError};
use inferd_ipc::limits;
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::worker_records::{GoldenPair, PerElement, StatePair, TensorRules};
use std::collections::BTreeMap;
use std::path::{Component, Path};
use toml::Spanned;

type Errors = Vec<ConfigError>;

/// Tolerance of a golden pair that names none; `inferctl replay` has the same.
const TOLERANCE_DEFAULT: f64 = 1e-4;

/// Reads everything that can be read, and notes what cannot.
pub(super) fn manifest(document: &Document, errors: &mut Errors) -> Manifest {
    let mut m = Manifest::default();
    let Some(mut root) = document.parse(errors) else { return m };
    m.file = relative_file(&mut root, "file", errors);
    m.backend = config::backend(&mut root, errors);
    m.device = config::device(&mut root, errors);
    m.precision = config::precision(&mut root, errors);
    m.sha256 = sha256(&mut root, errors);
    m.licence = root.plain("licence", "text in quotes", errors);
    m.source = root.plain("source", "text in quotes", errors);
    m.on_reload = root.plain("on_reload", "\"carry\" or \"reset\"", errors).unwrap_or_default();
    if let Some(section) = root.section("dimensions", errors) {
        m.dimensions = dimensions(section, errors);
    }
    let input_order = root.value::<Vec<String>>("input_order", "a list of input names", errors);
    let output_order = root.value::<Vec<String>>("output_order", "a list of output names", errors);
    m.order_given = [input_order.is_some(), output_order.is_some()];
    (m.inputs, m.input_order) = tensors(&mut root, "inputs", errors);
    (m.outputs, m.output_order) = tensors(&mut root, "outputs", errors);
    for (key, given, tables) in
        [("input_order", input_order, &mut m.input_order), ("output_order", output_order, &mut m.output_order)]
    {
        if let Some(given) = given {
            check_order(&root, key, &given, tables, errors);
            *tables = given.into_inner();
        }
    }
    m.state = state(&mut root, &m, errors);
    m.golden = golden(&mut root, errors);
    if let Some(mut section) = root.section("warm_up", errors) {
        m.warm_up_runs = section.count("runs", 0, u64::from(u32::MAX), errors).unwrap_or(0) as u32;
        section.finish(errors);
    }
    if let Some(section) = root.section("options", errors) {
        m.options = config::options(section, errors);
    }
    root.finish(errors);
    m
}

/// Whether a name stays below the folder it is looked up in: relative, no `..`, no empty part.
pub(crate) fn is_relative_below(name: &str) -> bool {
    let parts = !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    parts && !name.contains('\0') && !name.ends_with('/') && name.len() <= limits::MODEL_FILE_NAME_BYTES_MAX
}

fn relative_file(s: &mut Section<'_>, key: &'static str, errors: &mut Errors) -> Option<String> {
    let value: Spanned<String> = s.value(key, "a file name below the manifest's folder", errors)?;
    if is_relative_below(value.get_ref()) {
        return Some(value.into_inner());
    }
    let what = format!("{}: {:?} leaves the manifest's folder, or is too long", s.key(key), value.get_ref());
    let remedy = format!("give a relative name without \"..\", {} bytes at most", limits::MODEL_FILE_NAME_BYTES_MAX);
    s.refuse(&value, what, &remedy, errors);
    None
}

fn sha256(s: &mut Section<'_>, errors: &mut Errors) -> Option<String> {
    let value: Spanned<String> = s.value("sha256", "64 hexadecimal digits in quotes", errors)?;
    let text = value.get_ref();
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Some(text.to_ascii_lowercase());
    }
    s.refuse(
        &value,
        format!("{} is not a SHA-256", s.key("sha256")),
        "give 64 hexadecimal digits (sha256sum FILE)",
        errors,
    );
    None
}

fn dimensions(s: Section<'_>, errors: &mut Errors) -> BTreeMap<String, u64> {
    let mut dimensions = BTreeMap::new();
    let place = s.place();
    for (name, value) in s.rest() {
        let number = value.get_ref().as_integer().and_then(|i| u64::from_str_radix(i.as_str(), i.radix()).ok());
        match number.filter(|n| (1..=limits::TENSOR_BYTES_MAX).contains(n)) {
            Some(number) => {
                dimensions.insert(name.into_inner(), number);
            }
            None => {
                let what = format!("dimension `{}` is not a whole number from 1", name.get_ref());
                errors.push(ConfigError::at(place.clone(), what, "give the length that this dimension has here"));
            }
        }
    }
    if dimensions.len() > limits::OPTIONS_MAX {
        let what = format!("{} dimensions, over the limit of {}", dimensions.len(), limits::OPTIONS_MAX);
        errors.push(ConfigError::at(place, what, "remove those that the model does not have"));
    }
    dimensions
}

fn tensors(
    root: &mut Section<'_>,
    key: &'static str,
    errors: &mut Errors,
) -> (BTreeMap<String, TensorRules>, Vec<String>) {
    let (mut rules, mut order) = (BTreeMap::new(), Vec::new());
    let (mut text_bytes, mut place) = (0, None);
    for (name, section) in root.named(key, errors) {
        let at = section.place_of(&name);
        let name = name.into_inner();
        if name.is_empty() || name.len() > limits::TENSOR_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let what = format!("{name:?} is not a tensor name");
            let remedy = format!("use 1 to {} bytes without control characters", limits::TENSOR_NAME_BYTES_MAX);
            errors.push(ConfigError::at(at.clone(), what, remedy));
        }
        let tensor = tensor(section, &name, key, errors);
        text_bytes += tensor.elements.iter().map(|e| e.len() + 1).sum::<usize>();
        place = Some(at);
        order.push(name.clone());
        rules.insert(name, tensor);
    }
    if let Some(place) = place {
        for (what, count, limit) in [
            (format!("{key} in the manifest"), order.len(), limits::TENSORS_MAX),
            (format!("bytes of element names of all {key}"), text_bytes, limits::ELEMENT_TEXT_BYTES_MAX),
        ] {
            if count > limit {
                let what = format!("{count} {what}, over the limit of {limit}");
                errors.push(ConfigError::at(place.clone(), what, "remove or shorten some"));
            }
        }
    }
    (rules, order)
}

fn tensor(mut s: Section<'_>, name: &str, kind: &str, errors: &mut Errors) -> TensorRules {
    let output = kind == "outputs";
    let mut t = TensorRules {
        dtype: dtype(&mut s, errors),
        shape: shape(&mut s, errors),
        allow_non_finite: s.plain("allow_non_finite", "true or false", errors).unwrap_or(false),
        ..TensorRules::default()
    };
    if let (Some(dtype), Some(shape)) = (t.dtype, &t.shape) {
        let bytes = TensorSpec::new(name, dtype, shape).bytes();
        if bytes > limits::TENSOR_BYTES_MAX {
            let what = format!("{name} takes {bytes} bytes, over the limit of {}", limits::TENSOR_BYTES_MAX);
            errors.push(ConfigError::at(s.place(), what, "correct its shape"));
        }
    }
    let last = t.shape.as_ref().map(|shape| shape.last().copied().unwrap_or(1));
    t.elements = elements(&mut s, last, errors);
    t.time_axis = time_axis(&mut s, t.shape.as_deref(), output, errors);
    t.mean = per_element(&mut s, "mean", last, errors);
    t.std = per_element(&mut s, "std", last, errors);
    t.scale = per_element(&mut s, "scale", last, errors);
    t.offset = per_element(&mut s, "offset", last, errors);
    // Inputs are divided by std; for outputs, too, 0 would forget the action.
    if t.std.as_ref().is_some_and(|p| numbers(p).iter().any(|v| *v <= 0.0)) {
        let what = format!("{} is not above 0 everywhere", s.key("std"));
        errors.push(ConfigError::at(s.place(), what, "use 1 for elements that do not vary"));
    }
    t.clip = bounds(&mut s, "clip", last, errors);
    t.limits = bounds(&mut s, "limits", last, errors);
    if t.limits.is_some() && !output {
        let what = format!("{} guards outputs, and `{name}` is an input", s.key("limits"));
        errors.push(ConfigError::at(s.place(), what, "remove it, or use `clip`"));
    }
    let rules = t.mean.is_some() || t.std.is_some() || t.scale.is_some() || t.offset.is_some();
    if t.dtype == Some(DType::Bool) && (rules || t.clip.is_some() || t.limits.is_some()) {
        let what = format!("{} is bool and cannot be normalised, clipped or limited", s.key(name));
        errors.push(ConfigError::at(s.place(), what, "remove these keys"));
    }
    s.finish(errors);
    t
}

fn dtype(s: &mut Section<'_>, errors: &mut Errors) -> Option<DType> {
    let names = DType::ALL.map(DType::name).join(", ");
    let value: Spanned<String> = s.value("dtype", &format!("one of {names}"), errors)?;
    let dtype = DType::from_name(value.get_ref());
    if dtype.is_none() {
        let what = format!("{}: {:?} is no dtype", s.key("dtype"), value.get_ref());
        s.refuse(&value, what, &format!("give one of {names}"), errors);
    }
    dtype
}

fn shape(s: &mut Section<'_>, errors: &mut Errors) -> Option<Vec<u64>> {
    let value: Spanned<Vec<u64>> = s.value("shape", "a list of whole numbers, as [1, 12]", errors)?;
    let shape = value.get_ref();
    let what = if shape.len() > limits::RANK_MAX {
        format!("{} has {} dimensions, over the limit of {}", s.key("shape"), shape.len(), limits::RANK_MAX)
    } else if shape.contains(&0) {
        format!("{} has a dimension of length 0", s.key("shape"))
    } else {
        return Some(value.into_inner());
    };
    s.refuse(&value, what, "correct the shape", errors);
    None
}

fn elements(s: &mut Section<'_>, last: Option<u64>, errors: &mut Errors) -> Vec<String> {
    let Some(value) = s.value::<Vec<String>>("elements", "a list of \"name [unit]\"", errors) else {
        return Vec::new();
    };
    if value.get_ref().iter().any(|e| e.chars().any(char::is_control)) {
        s.refuse(&value, format!("{} hold a control character", s.key("elements")), "remove it", errors);
    }
    check_length(s, "elements", &value, value.get_ref().len(), last, errors);
    value.into_inner()
}

fn check_length<T>(
    s: &Section<'_>,
    key: &str,
    value: &Spanned<T>,
    count: usize,
    last: Option<u64>,
    errors: &mut Errors,
) {
    let Some(last) = last.filter(|last| count > 0 && count as u64 != *last) else { return };
    let what = format!("{} has {count} entries, but the last axis of the shape has {last}", s.key(key));
    s.refuse(value, what, "give one entry per element of the last axis", errors);
}

fn time_axis(s: &mut Section<'_>, shape: Option<&[u64]>, output: bool, errors: &mut Errors) -> Option<u32> {
    let value = s.number("time_axis", 0..=limits::RANK_MAX as i64 - 1, errors)?;
    let axis = *value.get_ref();
    if !output {
        s.refuse(&value, format!("{} is for outputs", s.key("time_axis")), "remove it", errors);
    } else if let Some(rank) = shape.map(<[u64]>::len).filter(|rank| axis >= *rank as i64) {
        let what = format!("{} is {axis}, but the shape has {rank} dimensions", s.key("time_axis"));
        s.refuse(&value, what, "count axes from 0", errors);
    }
    Some(axis as u32)
}

fn numbers(p: &PerElement) -> &[f64] {
    match p {
        PerElement::All(v) => std::slice::from_ref(v),
        PerElement::Each(v) => v,
    }
}

fn per_element(s: &mut Section<'_>, key: &'static str, last: Option<u64>, errors: &mut Errors) -> Option<PerElement> {
    let value: Spanned<PerElement> = s.value(key, "a number, or one number per element of the last axis", errors)?;
    check_numbers(s, key, &value, value.get_ref(), last, true, errors).then(|| value.into_inner())
}

fn check_numbers<T>(
    s: &Section<'_>,
    key: &str,
    at: &Spanned<T>,
    p: &PerElement,
    last: Option<u64>,
    finite: bool,
    errors: &mut Errors,
) -> bool {
    let all = numbers(p);
    let bad = |v: &f64| if finite { !v.is_finite() } else { v.is_nan() };
    if all.is_empty() || all.iter().any(bad) {
        let what = format!("{} is empty or not a number somewhere", s.key(key));
        s.refuse(at, what, "give finite numbers", errors);
        return false;
    }
    if let PerElement::Each(each) = p {
        check_length(s, key, at, each.len(), last, errors);
    }
    true
}

/// `[lo, hi]`, where each may be one number or one per element; infinities leave a side open.
fn bounds(s: &mut Section<'_>, key: &'static str, last: Option<u64>, errors: &mut Errors) -> Option<[PerElement; 2]> {
    let value: Spanned<[PerElement; 2]> = s.value(key, "[lowest, highest]", errors)?;
    let [low, high] = value.get_ref();
    for side in [low, high] {
        if !check_numbers(s, key, &value, side, last, false, errors) {
            return None;
        }
    }
    let (lows, highs) = (numbers(low), numbers(high));
    if lows.len() != highs.len() && lows.len() > 1 && highs.len() > 1 {
        let what = format!("{} has {} lowest and {} highest values", s.key(key), lows.len(), highs.len());
        s.refuse(&value, what, "give as many of one as of the other", errors);
        return None;
    }
    let count = lows.len().max(highs.len());
    if let Some(i) = (0..count).find(|i| low.at(*i) > high.at(*i)) {
        let what = format!("{}: {} is above {} at element {i}", s.key(key), low.at(i), high.at(i));
        s.refuse(&value, what, "write the lowest value first", errors);
        return None;
    }
    Some(value.into_inner())
}

fn check_order(root: &Section<'_>, key: &str, given: &Spanned<Vec<String>>, tables: &[String], errors: &mut Errors) {
    let names = given.get_ref();
    let repeated = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)).map(|(_, name)| name);
    if let Some(name) = repeated {
        root.refuse(given, format!("`{key}` names {name:?} twice"), "name each tensor once", errors);
    }
    if names.len() > limits::TENSORS_MAX {
        let what = format!("`{key}` has {} names, over the limit of {}", names.len(), limits::TENSORS_MAX);
        root.refuse(given, what, "remove some", errors);
    }
    for name in tables.iter().filter(|name| !names.contains(name)) {
        let what = format!("`{key}` leaves {name:?} out, which the manifest describes");
        root.refuse(given, what, "name every tensor, or remove its table", errors);
    }
}

fn state(root: &mut Section<'_>, m: &Manifest, errors: &mut Errors) -> Vec<StatePair> {
    let mut pairs: Vec<StatePair> = Vec::new();
    for mut s in root.repeated("state", errors) {
        let input = name_of(&mut s, "input", errors);
        let output = name_of(&mut s, "output", errors);
        let place = s.place();
        s.finish(errors);
        let (Some(input), Some(output)) = (input, output) else { continue };
        if pairs.iter().any(|p| p.input == input) {
            let what = format!("input {input:?} stands in two state pairs");
            errors.push(ConfigError::at(place.clone(), what, "an input continues from one output"));
        }
        if pairs.iter().any(|p| p.output == output) {
            let what = format!("output {output:?} stands in two state pairs");
            errors.push(ConfigError::at(place.clone(), what, "an output continues as one input"));
        }
        let orders = [("input", &input, 0, &m.input_order), ("output", &output, 1, &m.output_order)];
        for (kind, name, i, order) in orders {
            if m.order_given[i] && !order.contains(name) {
                let what = format!("state {kind} {name:?} is not in `{kind}_order`");
                errors.push(ConfigError::at(place.clone(), what, "name it there too"));
            }
        }
        if let (Some(a), Some(b)) = (m.inputs.get(&input), m.outputs.get(&output)) {
            let differs = |x: bool, y: bool, same: bool| x && y && !same;
            if differs(a.dtype.is_some(), b.dtype.is_some(), a.dtype == b.dtype)
                || differs(a.shape.is_some(), b.shape.is_some(), a.shape == b.shape)
            {
                let what = format!("state pair {input:?} <- {output:?}: dtypes or shapes differ");
                errors.push(ConfigError::at(place, what, "an output can only continue as an input of its own layout"));
            }
        }
        pairs.push(StatePair { input, output });
    }
    pairs
}

fn name_of(s: &mut Section<'_>, key: &'static str, errors: &mut Errors) -> Option<String> {
    let count = errors.len();
    let name: Option<String> = s.plain(key, "a tensor's name in quotes", errors);
    if name.is_none() && errors.len() == count {
        errors.push(ConfigError::at(s.place(), format!("{} is missing", s.key(key)), "name the tensor"));
    }
    name
}

fn golden(root: &mut Section<'_>, errors: &mut Errors) -> Vec<GoldenPair> {
    let mut pairs = Vec::new();
    let sections = root.repeated("golden", errors);
    if sections.len() > limits::GOLDEN_PAIRS_MAX {
        let what = format!("{} golden pairs, over the limit of {}", sections.len(), limits::GOLDEN_PAIRS_MAX);
        errors.push(ConfigError::at(sections[limits::GOLDEN_PAIRS_MAX].place(), what, "merge some of their steps"));
    }
    for mut s in sections {
        let count = errors.len();
        let file = relative_file(&mut s, "file", errors);
        if file.is_none() && errors.len() == count {
            errors.push(ConfigError::at(s.place(), format!("{} is missing", s.key("file")), "name the npz file"));
        }
        let tolerance = tolerance(&mut s, errors);
        s.finish(errors);
        if let (Some(file), Some(tolerance)) = (file, tolerance) {
            pairs.push(GoldenPair { file, tolerance });
        }
    }
    pairs
}

fn tolerance(s: &mut Section<'_>, errors: &mut Errors) -> Option<f64> {
    let expected = "the largest difference allowed, as 1e-4";
    let Some(value) = s.value::<f64>("tolerance", expected, errors) else { return Some(TOLERANCE_DEFAULT) };
    let tolerance = *value.get_ref();
    if tolerance.is_finite() && tolerance > 0.0 {
        return Some(tolerance);
    }
    let what = format!("{} is {tolerance}", s.key("tolerance"));
    s.refuse(&value, what, "give a finite number above 0, as 1e-4", errors);
    None
}
