//! What ONNX Runtime says, for people.

use inferd_worker::in_short;

/// A message on one line, without the places in the library's own sources that some sentences begin with.
pub fn for_people(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().filter(|word| !is_place(word)).collect();
    in_short(words.join(" "))
}

/// `/onnxruntime_src/onnxruntime/core/graph/graph.cc:1234`.
fn is_place(word: &str) -> bool {
    let Some((file, line)) = word.rsplit_once(':') else { return false };
    let source = [".cc", ".cpp", ".h", ".hpp"].iter().any(|end| file.ends_with(end));
    source && file.starts_with('/') && !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_without_places_in_the_library_s_sources() {
        let said = "/onnxruntime_src/onnxruntime/core/graph/graph.cc:88 bool Graph::Resolve(int)\n\"y\" is no output at /data/a.h5:3";
        assert_eq!(for_people(said), "bool Graph::Resolve(int) \"y\" is no output at /data/a.h5:3");
        assert!(for_people(&"ä ".repeat(1000)).ends_with(" ..."));
    }
}
