//! Every dimension of every input made a number, by one set of rules for all backends that read ONNX files.
//!
//! A symbol gets its value from `[dimensions]`, else from a `shape` in the manifest, else, where it is
//! the first dimension of an input, it is a batch of 1. Anything else is refused by name: a policy's
//! buffers have one size for good. A symbol may be an expression of symbols, as exporters write them.

use crate::{Fault, ModelError};
use inferd_ipc::limits::DIMENSION_DEPTH_MAX;
use inferd_ipc::worker_records::ModelSpec;
use std::collections::BTreeMap;

/// What a file declares of a dimension: a number, a symbol, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    /// A number.
    Fixed(u64),
    /// A symbol, or an expression of symbols.
    Named(String),
    /// Neither.
    Unknown,
}

/// An input as the file declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenInput {
    /// Its name.
    pub name: String,
    /// Its dimensions; none where the file does not say how many there are.
    pub shape: Option<Vec<Declared>>,
}

/// The symbols that have a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symbols(BTreeMap<String, Known>);

/// A symbol's value and where it comes from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    value: u64,
    from: String,
}

impl Symbols {
    /// The value of a symbol, or of an expression of symbols.
    #[must_use]
    pub fn evaluate(&self, symbol: &str) -> Option<u64> {
        if let Some(known) = self.0.get(symbol) {
            return Some(known.value);
        }
        let mut parser = Parser { rest: symbol, symbols: self, depth: 0 };
        let value = parser.sum()?;
        (parser.rest.trim_start().is_empty() && value.denominator == 1).then(|| u64::try_from(value.numerator).ok())?
    }

    /// The value of a symbol by its very name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).map(|k| k.value)
    }
}

fn fault(input: &str, what: String, remedy: &str) -> ModelError {
    ModelError::new(Fault::Manifest, format!("input {input:?}"), what, remedy)
}

/// The shape of every input, in order, and what all symbols are; `warn` hears of a batch that was assumed.
///
/// # Errors
/// [`Fault::Manifest`] names the dimension without a value, or the contradiction.
pub fn resolve(
    inputs: &[OpenInput],
    spec: &ModelSpec,
    warn: &mut dyn FnMut(&str),
) -> Result<(Vec<Vec<u64>>, Symbols), ModelError> {
    let mut inputs = inputs.to_vec();
    let mut symbols = named_in_manifest(&inputs, spec)?;
    for input in &mut inputs {
        take_manifest_shape(input, spec, &mut symbols)?;
    }
    for input in &inputs {
        assume_batch(input, &mut symbols, warn);
    }
    let shapes = inputs.iter().map(|i| numbers(i, &symbols)).collect::<Result<_, _>>()?;
    Ok((shapes, symbols))
}

/// `[dimensions]`, each of which must be a symbol of the file.
fn named_in_manifest(inputs: &[OpenInput], spec: &ModelSpec) -> Result<Symbols, ModelError> {
    let dims = inputs.iter().flat_map(|i| i.shape.iter().flatten());
    let names: Vec<&str> =
        dims.filter_map(|d| if let Declared::Named(n) = d { Some(n.as_str()) } else { None }).collect();
    for name in spec.dimensions.keys() {
        let word = |text: &&str| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == name);
        if !names.iter().any(|n| *n == name || word(n)) {
            let what = format!("the inputs of {:?} have no such symbol; they have: {}", spec.file, names.join(", "));
            let place = format!("{name} in [dimensions] of model.toml");
            return Err(ModelError::new(Fault::Manifest, place, what, "correct the name, or remove it"));
        }
    }
    let known = |v: &u64| Known { value: *v, from: "[dimensions]".to_owned() };
    Ok(Symbols(spec.dimensions.iter().map(|(k, v)| (k.clone(), known(v))).collect()))
}

/// Takes what `[inputs.NAME] shape` says, where the file leaves it open.
fn take_manifest_shape(input: &mut OpenInput, spec: &ModelSpec, symbols: &mut Symbols) -> Result<(), ModelError> {
    let Some(said) = spec.inputs.get(&input.name).and_then(|r| r.shape.as_ref()) else { return Ok(()) };
    let name = &input.name;
    let Some(shape) = &mut input.shape else {
        input.shape = Some(said.iter().map(|v| Declared::Fixed(*v)).collect());
        return Ok(());
    };
    let remedy = "correct shape of this input in model.toml, or leave it to the file";
    if shape.len() != said.len() {
        let what = format!("model.toml says {said:?}, but {:?} has {} dimensions", spec.file, shape.len());
        return Err(fault(name, what, remedy));
    }
    for (axis, (dim, value)) in shape.iter_mut().zip(said).enumerate() {
        match dim {
            Declared::Fixed(v) if v != value => {
                let what = format!("model.toml says {value} at axis {axis}, but {:?} has {v}", spec.file);
                return Err(fault(name, what, remedy));
            }
            Declared::Fixed(_) => {}
            Declared::Named(symbol) => {
                let said = Known { value: *value, from: format!("shape of input {name:?}") };
                let known = symbols.0.entry(symbol.clone()).or_insert(said);
                if known.value != *value {
                    let what =
                        format!("model.toml says {value} for {symbol:?} here, and {} in {}", known.value, known.from);
                    return Err(fault(name, what, "give the symbol one value"));
                }
            }
            Declared::Unknown => *dim = Declared::Fixed(*value),
        }
    }
    Ok(())
}

fn assume_batch(input: &OpenInput, symbols: &mut Symbols, warn: &mut dyn FnMut(&str)) {
    if let Some(Declared::Named(symbol)) = input.shape.as_ref().and_then(|s| s.first())
        && is_plain(symbol)
        && !symbols.0.contains_key(symbol)
    {
        warn(&format!("{symbol:?}, the first dimension of input {:?}, is taken as a batch of 1", input.name));
        symbols.0.insert(symbol.clone(), Known { value: 1, from: "a batch of 1".to_owned() });
    }
}

/// A name, not an expression of names.
fn is_plain(symbol: &str) -> bool {
    !symbol.contains(['+', '-', '*', '/', '%', '(', ')', ' '])
}

fn numbers(input: &OpenInput, symbols: &Symbols) -> Result<Vec<u64>, ModelError> {
    let name = &input.name;
    let remedy = "give its shape under [inputs] in model.toml";
    let Some(shape) = &input.shape else {
        return Err(fault(name, "the file does not say how many dimensions it has".into(), remedy));
    };
    let number = |(axis, dim): (usize, &Declared)| match dim {
        Declared::Fixed(v) => Ok(*v),
        Declared::Unknown if axis == 0 => Ok(1),
        Declared::Unknown => Err(fault(name, format!("dimension {axis} is open, and has no name"), remedy)),
        Declared::Named(symbol) => symbols.evaluate(symbol).ok_or_else(|| {
            let remedy = "set the symbol under [dimensions] in model.toml";
            fault(name, format!("dimension {axis} is the symbol {symbol:?}, which has no value"), remedy)
        }),
    };
    shape.iter().enumerate().map(number).collect()
}

/// An exact number: in `floor(w/2 - 1/2) + 1`, `1/2` is one half.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ratio {
    numerator: i128,
    /// Positive.
    denominator: i128,
}

impl Ratio {
    fn new(numerator: i128, denominator: i128) -> Option<Ratio> {
        let (mut a, mut b) = (numerator.checked_abs()?, denominator.checked_abs()?);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let by = a.checked_mul(denominator.signum())?;
        (denominator != 0).then(|| Ratio { numerator: numerator / by, denominator: denominator / by })
    }

    fn whole(n: i128) -> Ratio {
        Ratio { numerator: n, denominator: 1 }
    }

    fn plus(self, b: Ratio, sign: i128) -> Option<Ratio> {
        let (x, y) = (self.numerator.checked_mul(b.denominator)?, b.numerator.checked_mul(self.denominator)?);
        Ratio::new(x.checked_add(y.checked_mul(sign)?)?, self.denominator.checked_mul(b.denominator)?)
    }

    fn times(self, b: Ratio) -> Option<Ratio> {
        Ratio::new(self.numerator.checked_mul(b.numerator)?, self.denominator.checked_mul(b.denominator)?)
    }

    fn over(self, b: Ratio) -> Option<Ratio> {
        Ratio::new(self.numerator.checked_mul(b.denominator)?, self.denominator.checked_mul(b.numerator)?)
    }

    fn floor(self) -> Ratio {
        Ratio::whole(self.numerator.div_euclid(self.denominator))
    }

    fn less(self, b: Ratio) -> Option<bool> {
        Some(self.numerator.checked_mul(b.denominator)? < b.numerator.checked_mul(self.denominator)?)
    }
}

/// Reads an expression of known symbols: `+ - * / // %`, brackets, `floor`, `min`, `max`, `broadcast`.
struct Parser<'a> {
    rest: &'a str,
    symbols: &'a Symbols,
    depth: u32,
}

impl Parser<'_> {
    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn sum(&mut self) -> Option<Ratio> {
        let mut value = self.product()?;
        loop {
            let sign = if self.take("+") {
                1
            } else if self.take("-") {
                -1
            } else {
                return Some(value);
            };
            value = value.plus(self.product()?, sign)?;
        }
    }

    fn product(&mut self) -> Option<Ratio> {
        let mut value = self.atom()?;
        loop {
            if self.take("*") {
                value = value.times(self.atom()?)?;
            } else if self.take("//") {
                value = value.over(self.atom()?)?.floor();
            } else if self.take("/") {
                value = value.over(self.atom()?)?;
            } else if self.take("%") {
                let by = self.atom()?;
                value = value.plus(value.over(by)?.floor().times(by)?, -1)?;
            } else {
                return Some(value);
            }
        }
    }

    fn atom(&mut self) -> Option<Ratio> {
        self.depth += 1;
        if self.depth > DIMENSION_DEPTH_MAX {
            return None;
        }
        let value = self.atom_within();
        self.depth -= 1;
        value
    }

    fn atom_within(&mut self) -> Option<Ratio> {
        if self.take("-") {
            return self.atom()?.times(Ratio::whole(-1));
        }
        if self.take("(") {
            let value = self.sum()?;
            return self.take(")").then_some(value);
        }
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return Some(Ratio::whole(word.parse::<u64>().ok()?.into()));
        }
        if word.is_empty() {
            return None;
        }
        if self.take("(") { self.call(word) } else { self.symbols.get(word).map(|v| Ratio::whole(v.into())) }
    }

    fn call(&mut self, function: &str) -> Option<Ratio> {
        let mut value = self.sum()?;
        let mut arguments = 1;
        while self.take(",") {
            let next = self.sum()?;
            arguments += 1;
            let replace = match function {
                "min" => next.less(value)?,
                "max" | "broadcast" => value.less(next)?,
                _ => return None,
            };
            value = if replace { next } else { value };
        }
        let closed = self.take(")");
        match function {
            "floor" if arguments == 1 => closed.then(|| value.floor()),
            "min" | "max" | "broadcast" => closed.then_some(value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(text: &str) -> Option<u64> {
        let known = |value| Known { value, from: String::new() };
        let symbols = [("n", 5), ("w", 192), ("a.b", 7), ("odd name!", 3)];
        Symbols(symbols.map(|(k, v)| (k.to_owned(), known(v))).into()).evaluate(text)
    }

    #[test]
    fn expressions_are_exact_until_a_floor() {
        for (text, value) in [
            ("n", 5),
            ("odd name!", 3),
            ("a.b + 1", 8),
            ("2*n + 1", 11),
            ("n - -1", 6),
            ("floor(w/2 - 1/2) + 1", 96),
            ("floor((w - 1)/8) + 1", 24),
            ("(w - 1)//8 + 1", 24),
            ("w % 10", 2),
            ("max(1, n, 3) * min(2, n)", 10),
            ("broadcast(1, n)", 5),
        ] {
            assert_eq!(evaluate(text), Some(value), "{text}");
        }
    }

    #[test]
    fn brackets_are_nested_up_to_a_bound() {
        let nested = |n: u32| format!("{}n{}", "(".repeat(n as usize), ")".repeat(n as usize));
        assert_eq!(evaluate(&nested(DIMENSION_DEPTH_MAX - 1)), Some(5));
        assert_eq!(evaluate(&nested(DIMENSION_DEPTH_MAX)), None);
    }

    #[test]
    fn what_has_no_whole_positive_value_has_none() {
        let deep = format!("{}n{}", "(".repeat(1000), ")".repeat(1000));
        let huge = format!("n{}", "*18446744073709551615".repeat(9));
        for text in ["m", "n/2", "-n", "n/0", "n % 0", "n n", "n +", "floor(n, 2)", "sin(n)", "(n", "", &deep, &huge] {
            assert_eq!(evaluate(text), None, "{text:.40}");
        }
    }
}
