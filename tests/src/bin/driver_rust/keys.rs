//! The `key=value` words of a command, taken out one by one; what is left over is a mistake.

use crate::Failure;
use inferd_tests::answer::unhex;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// The keys of one command.
pub struct Keys<'l>(BTreeMap<&'l str, &'l str>);

impl<'l> Keys<'l> {
    pub fn parse(words: impl Iterator<Item = &'l str>) -> Result<Keys<'l>, Failure> {
        let pairs = words.map(|w| w.split_once('=').ok_or_else(|| Failure::usage(format!("{w} is not key=value"))));
        Ok(Keys(pairs.collect::<Result<_, _>>()?))
    }

    pub fn text(&mut self, key: &str) -> Option<&'l str> {
        self.0.remove(key)
    }

    pub fn number<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, Failure> {
        let parse = |v: &str| v.parse().map_err(|_| Failure::usage(format!("{key}={v} is not a number")));
        self.0.remove(key).map(parse).transpose()
    }

    pub fn need<T: FromStr>(&mut self, key: &str) -> Result<T, Failure> {
        self.number(key)?.ok_or_else(|| Failure::usage(format!("{key} is missing")))
    }

    pub fn micros(&mut self, key: &str) -> Result<Option<Duration>, Failure> {
        Ok(self.number(key)?.map(Duration::from_micros))
    }

    pub fn bytes(&mut self, key: &str) -> Option<Vec<u8>> {
        self.0.remove(key).map(unhex)
    }

    pub fn end(self) -> Result<(), Failure> {
        match self.0.keys().next() {
            Some(key) => Err(Failure::usage(format!("unknown key {key}"))),
            None => Ok(()),
        }
    }
}
