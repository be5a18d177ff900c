//! The page: `<!-- generated: NAME -->` to `<!-- end -->` is replaced, every other word stays as it is.

/// Fills in every section; a marker without a section, or without an end, is an error.
pub fn fill(text: &str, sections: &[(&str, String)]) -> Result<String, String> {
    const BEGIN: &str = "<!-- generated: ";
    const END: &str = "<!-- end -->";
    let mut page = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, marked) = rest.split_at(at);
        let (name, after) = marked[BEGIN.len()..].split_once(" -->").ok_or("a marker without `-->`")?;
        let (_, after) = after.split_once(END).ok_or(format!("the section {name} has no {END}"))?;
        let (_, content) = sections.iter().find(|(n, _)| *n == name).ok_or(format!("no section is called {name}"))?;
        page += &format!("{before}{BEGIN}{name} -->\n{}\n{END}", content.trim_end());
        rest = after;
    }
    Ok(page + rest)
}
