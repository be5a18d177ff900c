//! Two kinds of charts, as SVG: lines over axes that may be logarithmic, and bars.
//!
//! A logarithmic axis is drawn by giving the logarithm and writing what it stands for: so ticks are powers of ten. The
//! background is white and opaque, for pages that are dark. inferd is always the thick blue line.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

const INFERD: RGBColor = RGBColor(0, 90, 181);
/// Distinct for people who see colours differently too (after Okabe and Ito, and darker twins of theirs).
const OTHERS: [RGBColor; 11] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(110, 110, 110),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 60, 10),
    RGBColor(0, 90, 60),
    RGBColor(120, 50, 140),
    RGBColor(160, 150, 0),
    RGBColor(20, 20, 20),
];
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);

/// What stands on an axis.
pub struct Axis {
    pub title: &'static str,
    pub from: f64,
    pub to: f64,
    pub ticks: usize,
    pub label: fn(f64) -> String,
}

/// A line: its name, and its points in the axes' own numbers.
pub type Line = (String, Vec<(f64, f64)>);

/// A chart of lines.
pub struct Lines {
    pub title: &'static str,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
    /// Stretches of x that are shaded, and what they are called.
    pub shades: (&'static str, Vec<(f64, f64)>),
    /// Whether points are marked.
    pub marks: bool,
}

/// The colour of a line: inferd's first name gets blue.
fn colour(name: &str, others: &mut usize) -> RGBColor {
    if name == "inferd" || name.starts_with("inferd, p50") || name.starts_with("sessions with") {
        return INFERD;
    }
    *others += 1;
    OTHERS[(*others - 1) % OTHERS.len()]
}

fn style(size: u32) -> TextStyle<'static> {
    TextStyle::from((FONT, size)).color(&INK)
}

/// Draws lines, with their names to the right.
pub fn lines(path: &Path, chart: &Lines) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (900, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(660);
    let mut context = ChartBuilder::on(&left)
        .caption(chart.title, style(19))
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(74)
        .build_cartesian_2d(chart.x.from..chart.x.to, chart.y.from..chart.y.to)?;
    context
        .configure_mesh()
        .x_desc(chart.x.title)
        .y_desc(chart.y.title)
        .x_labels(chart.x.ticks)
        .y_labels(chart.y.ticks)
        .x_label_formatter(&|x| (chart.x.label)(*x))
        .y_label_formatter(&|y| (chart.y.label)(*y))
        .label_style(style(13))
        .axis_desc_style(style(14))
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(WHITE)
        .axis_style(INK)
        .draw()?;
    let shade = RGBColor(255, 214, 102).mix(0.55);
    let shades = chart
        .shades
        .1
        .iter()
        .map(|(from, to)| Rectangle::new([(*from, chart.y.from), (*to, chart.y.to)], shade.filled()));
    context.draw_series(shades)?;
    let mut others = 0;
    let mut names = Vec::new();
    for (name, points) in &chart.lines {
        let colour = colour(name, &mut others);
        let width = if colour == INFERD { 3 } else { 2 };
        context.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(width)))?;
        if chart.marks {
            context.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour.filled())))?;
        }
        names.push((name.clone(), colour, width));
    }
    legend(&right, &names, (!chart.shades.1.is_empty()).then_some((chart.shades.0, shade)))?;
    root.present()?;
    Ok(())
}

/// Names beside a chart, in the order of its lines.
fn legend(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    names: &[(String, RGBColor, u32)],
    shade: Option<(&str, RGBAColor)>,
) -> Result<(), Box<dyn Error>> {
    let mut y = 60;
    for (name, colour, width) in names {
        area.draw(&PathElement::new(vec![(4, y), (28, y)], colour.stroke_width(*width)))?;
        // A long name goes on in a second line.
        for line in wrapped(name) {
            area.draw(&Text::new(line, (34, y - 7), style(13)))?;
            y += 17;
        }
        y += 7;
    }
    if let Some((name, colour)) = shade {
        area.draw(&Rectangle::new([(4, y - 6), (28, y + 6)], colour.filled()))?;
        area.draw(&Text::new(name.to_owned(), (34, y - 7), style(13)))?;
    }
    Ok(())
}

fn wrapped(name: &str) -> Vec<String> {
    const WIDTH: usize = 30;
    let mut lines = vec![String::new()];
    for word in name.split(' ') {
        let last = lines.last().map_or(0, String::len);
        if last > 0 && last + word.len() + 1 > WIDTH {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// A panel of bars: what it is about, and each bar's name, value and words at its end.
pub struct Panel {
    pub title: String,
    pub bars: Vec<(String, f64, String)>,
}

/// Draws panels of horizontal bars below each other, on one logarithmic axis from 1.
pub fn bars(path: &Path, title: &str, panels: &[Panel]) -> Result<(), Box<dyn Error>> {
    const NAME: i32 = 250;
    const WIDTH: i32 = 900;
    const BAR: i32 = 21;
    let rows: usize = panels.iter().map(|p| p.bars.len()).sum();
    let height = 62 + rows as i32 * BAR + panels.len() as i32 * 36;
    let root = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (14, 14), style(19)))?;
    let most = panels.iter().flat_map(|p| &p.bars).map(|b| b.1).fold(10.0, f64::max);
    let to_x = |value: f64| {
        let part = value.max(1.0).log10() / most.log10();
        NAME + (part * f64::from(WIDTH - NAME - 190)) as i32
    };
    let mut y = 48;
    for panel in panels {
        root.draw(&Text::new(panel.title.clone(), (14, y + 6), style(15)))?;
        y += 30;
        for power in 0..=most.log10() as i32 {
            let x = to_x(10f64.powi(power));
            let end = y + panel.bars.len() as i32 * BAR;
            root.draw(&PathElement::new(vec![(x, y), (x, end)], RGBColor(215, 215, 215)))?;
            let label = style(11).pos(Pos::new(HPos::Center, VPos::Bottom));
            root.draw(&Text::new(format!("{}", 10f64.powi(power)), (x, y - 3), label))?;
        }
        for (name, value, words) in &panel.bars {
            let colour = if name == "inferd" { INFERD } else { RGBColor(120, 130, 140) };
            let right = to_x(*value).max(NAME + 2);
            root.draw(&Rectangle::new([(NAME, y + 3), (right, y + BAR - 3)], colour.filled()))?;
            let at = |side| style(13).pos(Pos::new(side, VPos::Center));
            root.draw(&Text::new(name.clone(), (NAME - 8, y + BAR / 2), at(HPos::Right)))?;
            root.draw(&Text::new(words.clone(), (right + 6, y + BAR / 2), at(HPos::Left)))?;
            y += BAR;
        }
        y += 6;
    }
    root.present()?;
    Ok(())
}
