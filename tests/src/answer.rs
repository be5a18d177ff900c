//! One line of JSON from a driver, read with accessors that panic with the whole line.

use serde_json::Value;
use std::time::Duration;

/// A driver's answer to one command.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The command it answers.
    pub command: String,
    /// The whole object.
    pub json: Value,
}

impl Answer {
    /// Whether the call succeeded.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.json["ok"] == true
    }

    /// Itself, if the call succeeded.
    ///
    /// # Panics
    /// When it failed.
    pub fn succeeded(self) -> Answer {
        assert!(self.is_ok(), "`{}` failed: {}", self.command, self.json);
        self
    }

    /// The error's name; empty when there is none.
    #[must_use]
    pub fn error(&self) -> &str {
        self.json["error"].as_str().unwrap_or("")
    }

    /// The error's text.
    #[must_use]
    pub fn message(&self) -> &str {
        self.json["message"].as_str().unwrap_or("")
    }

    /// The outcome's name.
    ///
    /// # Panics
    /// When the call failed.
    #[must_use]
    pub fn outcome(&self) -> &str {
        assert!(self.is_ok(), "`{}` failed: {}", self.command, self.json);
        self.json["outcome"].as_str().unwrap_or("")
    }

    /// Itself, if the outcome is this one.
    ///
    /// # Panics
    /// When it is another.
    pub fn expect(self, outcome: &str) -> Answer {
        assert_eq!(self.outcome(), outcome, "`{}` answered {}", self.command, self.json);
        self
    }

    /// An unsigned number.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn number(&self, key: &str) -> u64 {
        self.json[key].as_u64().unwrap_or_else(|| panic!("`{}`: no number {key:?} in {}", self.command, self.json))
    }

    /// A truth value.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.json[key]
            .as_bool()
            .unwrap_or_else(|| panic!("`{}`: no truth value {key:?} in {}", self.command, self.json))
    }

    /// A text.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap_or_else(|| panic!("`{}`: no text {key:?} in {}", self.command, self.json))
    }

    /// The time inside the call.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_micros(self.number("waited_us"))
    }

    /// Whether the reply shows its output.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.json["outputs"].is_null() || !self.json["hash"].is_null()
    }

    /// Bytes of output `k`.
    ///
    /// # Panics
    /// When there is no such output.
    #[must_use]
    pub fn output(&self, k: usize) -> Vec<u8> {
        let hex = self.json["outputs"][k].as_str();
        unhex(hex.unwrap_or_else(|| panic!("`{}`: no output {k} in {}", self.command, self.json)))
    }

    /// Output `k` as f32.
    #[must_use]
    pub fn output_f32(&self, k: usize) -> Vec<f32> {
        self.output(k).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// In a summary: how many requests had this outcome.
    #[must_use]
    pub fn count(&self, outcome: &str) -> u64 {
        self.json["outcomes"][outcome].as_u64().unwrap_or(0)
    }

    /// In a summary: how many calls were refused with this error.
    #[must_use]
    pub fn errors(&self, error: &str) -> u64 {
        self.json["errors"][error].as_u64().unwrap_or(0)
    }

    /// In a summary of `check=answers`: what each generation answered to each observation, as hashes; "" for nothing.
    ///
    /// # Panics
    /// When the summary has none.
    #[must_use]
    pub fn answers(&self) -> Vec<(u32, [String; OBSERVATIONS])> {
        let all = self.json["answers"].as_array().unwrap_or_else(|| panic!("`{}`: no answers", self.command));
        let hashes = |of: &Value| std::array::from_fn(|i| of["hashes"][i].as_str().unwrap_or("").to_owned());
        all.iter().map(|of| (of["generation"].as_u64().unwrap_or(0) as u32, hashes(of))).collect()
    }

    /// In a summary: how many calls were refused, whatever the error.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.json["errors"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum()
    }

    /// What is wrong with a summary: a violation that the driver found, or requests without exactly one outcome.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let sum: u64 = self.json["outcomes"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
        if self.number("violations") > 0 {
            return Some(format!("{}: {}", self.number("violations"), self.text("first_violation")));
        }
        (sum != self.number("sent")).then(|| format!("{} requests, {sum} outcomes", self.number("sent")))
    }

    /// Itself, if it is a summary without fault.
    ///
    /// # Panics
    /// When it has one.
    pub fn clean(self) -> Answer {
        let summary = self.succeeded();
        assert_eq!(summary.fault(), None, "`{}`: {}", summary.command, summary.json);
        summary
    }
}

/// Observations that `check=answers` sends in turn (DRIVER.md).
pub const OBSERVATIONS: usize = 4;

/// Where FNV-1a, 64-bit, begins.
pub const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a over these bytes, going on from `hash`.
#[must_use]
pub fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes of hexadecimal digits.
///
/// # Panics
/// When they are not.
#[must_use]
pub fn unhex(digits: &str) -> Vec<u8> {
    assert!(digits.len().is_multiple_of(2) && digits.is_ascii(), "not hexadecimal: {digits}");
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("hexadecimal")).collect()
}

/// f32 elements as the hexadecimal digits of a `write`.
#[must_use]
pub fn hex_f32(elements: &[f32]) -> String {
    hex(&elements.iter().flat_map(|e| e.to_le_bytes()).collect::<Vec<u8>>())
}

/// The pattern that `fill=SEED` writes into a tensor of `bytes` bytes (DRIVER.md).
#[must_use]
pub fn fill(seed: u64, bytes: usize) -> Vec<u8> {
    let words = (0..).flat_map(|i: u64| (mix(seed.wrapping_add(i)) & 0x3f3f_3f3f_3f3f_3f3f).to_le_bytes());
    words.take(bytes).collect()
}

/// The mixing function of DRIVER.md (splitmix64).
#[must_use]
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fill_pattern_is_the_one_that_driver_md_shows() {
        assert_eq!(hex(&fill(1, 8)), "011c02092c2d0a11");
        assert_eq!(fill(1, 12)[8..], fill(2, 8)[..4]);
    }
}
