//! The last step of `make bench`: what all programs wrote, as a page with tables and as plots.
//!
//! Reads the lines of `INFERD_BENCH_JSON` (`FORMAT.md`) and writes `benchmarks.md` and `plots/*.svg` into the folder that
//! `INFERD_BENCH_DOCS` names. Of the page only what stands between its markers is replaced; the words around them are
//! people's. Rows of peers are merged with inferd's by their names. Measures nothing.

#[path = "report/charts.rs"]
mod charts;
#[path = "report/data.rs"]
mod data;
#[path = "report/page.rs"]
mod page;
#[path = "report/plots.rs"]
mod plots;
#[path = "report/tables.rs"]
mod tables;

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let Some(lines) = std::env::var_os("INFERD_BENCH_JSON") else {
        // `cargo bench` runs every bench; this one has nothing to read then.
        println!("SKIP report: INFERD_BENCH_JSON names no file");
        return Ok(());
    };
    let docs = std::env::var_os("INFERD_BENCH_DOCS").map_or_else(|| PathBuf::from("docs"), PathBuf::from);
    let data = data::Data::read(Path::new(&lines))?;
    std::fs::create_dir_all(docs.join("plots"))?;
    let plots = plots::draw(&data, &docs.join("plots"))?;
    let page = docs.join("benchmarks.md");
    let text = std::fs::read_to_string(&page).map_err(|e| format!("{}: {e}", page.display()))?;
    std::fs::write(&page, page::fill(&text, &tables::sections(&data, &plots))?)?;
    println!("{} and {} plots beside it", page.display(), plots.len());
    Ok(())
}
