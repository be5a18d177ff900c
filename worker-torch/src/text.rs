//! What libtorch says, made fit for a log line.
//!
//! Its messages hold the interpreter's traceback over many lines; the reason stands last. The line keeps the reason, then
//! the line of code that raised, within a bound.

use inferd_worker::in_short;

/// One line: the reason first, then where.
#[must_use]
pub fn reason(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let Some(last) = lines.last() else { return "it raised without a message".into() };
    let at = lines.iter().rev().find(|l| l.ends_with("<--- HERE")).map(|l| l.trim_end_matches("<--- HERE").trim_end());
    // The code that raised stands above a line of tildes.
    let code = lines.windows(2).rev().find(|w| w[1].starts_with('~')).map(|w| w[0]);
    let is_interpreter = lines.len() > 1 && lines[0].contains("TorchScript interpreter");
    let text = match (is_interpreter, code.or(at)) {
        (true, Some(code)) if code != *last => format!("{last} (at `{code}`)"),
        (true, _) => (*last).to_owned(),
        _ => lines.join(" "),
    };
    in_short(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_comes_first_and_the_code_after_it() {
        let message = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript, serialized code (most recent call last):\n  File \"code/__torch__.py\", line 6, in forward\n    return torch.matmul(x, y)\n           ~~~~~~~~~~~~ <--- HERE\n\nRuntimeError: sizes differ\n";
        assert_eq!(reason(message), "RuntimeError: sizes differ (at `return torch.matmul(x, y)`)");
        assert_eq!(reason("a\n b"), "a b");
        assert!(reason(&"x".repeat(2000)).len() < 720);
    }
}
