//! The plots: inline SVG without scripts, fonts or fixed colours.
//!
//! Each has a view box 360 wide and scales to its container, so its text is legible on a phone and
//! on a desk. Colours are classes of `style.css`, which knows light, dark and paper. Numbers from
//! files may be anything: [`Axis`] maps whatever is not finite to an edge, and no coordinate is
//! written that is not a finite number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::format::{count, number, percent};
use crate::compare::Estimate;
use crate::edit::Component;
use crate::localize::Effect;
use crate::text;

/// Width of the view box of a plot.
pub const WIDTH: f64 = 360.0;

/// A linear map from values to coordinates, clamped at both ends.
pub struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Axis {
    /// Maps `from..to` to `start..end`.
    pub fn new(from: f64, to: f64, start: f64, end: f64) -> Self {
        let from = if from.is_finite() { from } else { 0.0 };
        let to = if to.is_finite() && to > from { to } else { from + 1.0 };
        Self { from, to, start, end }
    }

    /// Returns the coordinate of a value.
    pub fn at(&self, value: f64) -> f64 {
        let share = if value.is_nan() {
            0.0
        } else {
            ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
        };
        let share = if share.is_nan() { 1.0 } else { share }; // infinite over infinite
        self.start + share * (self.end - self.start)
    }
}

/// Rounds up to 1, 2 or 5 times a power of ten.
pub fn round_up(value: f64) -> f64 {
    if !value.is_finite() || value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|&top| top >= value * 0.999_999)
        .unwrap_or(value)
}

/// A named line of a curve plot.
pub struct Line<'a> {
    pub name: &'a str,
    pub points: Vec<(u64, u64)>,
}

/// Plots counts over evaluations: at most three lines, told apart by colour and dashes.
pub fn curves(title: &str, lines: &[Line]) -> String {
    const MOST_POINTS: usize = 240;
    let (left, right, top, bottom) = (46.0, WIDTH - 12.0, 12.0, 150.0);
    let points = || lines.iter().flat_map(|l| &l.points);
    let most_x = points().map(|p| p.0).max().unwrap_or(0).max(1) as f64;
    let most_y = round_up(points().map(|p| p.1).max().unwrap_or(0).max(1) as f64);
    let (x, y) = (Axis::new(0.0, most_x, left, right), Axis::new(0.0, most_y, bottom, top));
    let mut svg =
        format!(r#"<svg viewBox="0 0 {WIDTH} 184" role="img" aria-label="{}">"#, text::html(title));
    for share in [0.0, 0.5, 1.0] {
        let (value, at) = (most_y * share, y.at(most_y * share));
        if value.fract() == 0.0 {
            let _ = write!(svg, r#"<path class="grid" d="M{left} {at:.1}H{right}"/>"#);
            let _ = write!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" class="end">{}</text>"#,
                left - 6.0,
                at + 4.0,
                count(value as u64)
            );
        }
    }
    for (share, anchor) in [(0.0, "start"), (0.5, "mid"), (1.0, "end")] {
        let value = most_x * share;
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="166" class="{anchor}">{}</text>"#,
            x.at(value),
            count(value as u64)
        );
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="181" class="mid soft">evaluations</text>"#,
        (left + right) / 2.0
    );
    for (i, line) in lines.iter().enumerate() {
        let step = line.points.len().div_ceil(MOST_POINTS).max(1);
        let last = line.points.len().saturating_sub(1);
        let mut path = String::new();
        for (_, &(at, value)) in
            line.points.iter().enumerate().filter(|(k, _)| k % step == 0 || *k == last)
        {
            let _ = write!(
                path,
                "{}{:.1} {:.1}",
                if path.is_empty() { 'M' } else { 'L' },
                x.at(at as f64),
                y.at(value as f64)
            );
        }
        if !path.is_empty() {
            let _ = write!(
                svg,
                r#"<path class="line line{}" d="{path}"><title>{}</title></path>"#,
                i % 3,
                text::html(line.name)
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

/// Plots shares by layer, on an axis from 0 to 1.
pub fn by_layer(label: &str, lines: &[(&str, &[f64])]) -> String {
    values(label, "layer", 0, 1.0, percent, lines)
}

/// Plots the losses after every step.
pub fn by_step(label: &str, lines: &[(&str, &[f64])]) -> String {
    let most = lines
        .iter()
        .flat_map(|(_, losses)| *losses)
        .copied()
        .filter(|loss| loss.is_finite())
        .fold(0.0, f64::max);
    values(label, "step", 1, round_up(most), number, lines)
}

/// Plots lines on an axis from 0 to `most`, the first value of each at `from`; the first line
/// stands out, the others are dashed.
fn values(
    label: &str,
    unit: &str,
    from: usize,
    most: f64,
    shown: fn(f64) -> String,
    lines: &[(&str, &[f64])],
) -> String {
    let (left, right, top, bottom) = (46.0, WIDTH - 12.0, 12.0, 130.0);
    let last = lines.iter().map(|(_, values)| values.len()).max().unwrap_or(0).saturating_sub(1);
    let (x, y) =
        (Axis::new(0.0, last.max(1) as f64, left, right), Axis::new(0.0, most, bottom, top));
    let mut svg =
        format!(r#"<svg viewBox="0 0 {WIDTH} 164" role="img" aria-label="{}">"#, text::html(label));
    for share in [0.0, 0.5, 1.0] {
        let at = y.at(share * most);
        let _ = write!(svg, r#"<path class="grid" d="M{left} {at:.1}H{right}"/>"#);
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" class="end">{}</text>"#,
            left - 6.0,
            at + 4.0,
            shown(share * most)
        );
    }
    for (at, anchor) in [(0, "start"), (last, "end")] {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="146" class="{anchor}">{}</text>"#,
            x.at(at as f64),
            from + at
        );
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="161" class="mid soft">{unit}</text>"#,
        (left + right) / 2.0
    );
    // The first on top of the others.
    for (i, (name, values)) in lines.iter().enumerate().rev() {
        let mut path = String::new();
        for (at, value) in values.iter().enumerate() {
            let _ = write!(
                path,
                "{}{:.1} {:.1}",
                if at == 0 { 'M' } else { 'L' },
                x.at(at as f64),
                y.at(*value)
            );
        }
        if !path.is_empty() {
            let class = i.min(1);
            let _ = write!(
                svg,
                r#"<path class="line line{class}" d="{path}"><title>{}</title></path>"#,
                text::html(name)
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

/// Plots means and their intervals, one row each, on an axis from zero.
pub fn intervals(label: &str, rows: &[(&str, &Estimate)]) -> String {
    let (left, right, pitch) = (118.0, WIDTH - 44.0, 24.0);
    let most =
        round_up(rows.iter().map(|(_, e)| e.high).filter(|v| v.is_finite()).fold(0.0, f64::max));
    let (x, bottom) = (Axis::new(0.0, most, left, right), 6.0 + pitch * rows.len() as f64);
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {:.0}" role="img" aria-label="{}">"#,
        bottom + 20.0,
        text::html(label)
    );
    for share in [0.0, 0.5, 1.0] {
        let at = x.at(most * share);
        let _ = write!(svg, r#"<path class="grid" d="M{at:.1} 4V{bottom:.1}"/>"#);
        let _ = write!(
            svg,
            r#"<text x="{at:.1}" y="{:.1}" class="mid">{}</text>"#,
            bottom + 15.0,
            number(most * share)
        );
    }
    for (i, (name, estimate)) in rows.iter().enumerate() {
        let y = 6.0 + pitch * (i as f64 + 0.5);
        let (low, mean, high) = (x.at(estimate.low), x.at(estimate.mean), x.at(estimate.high));
        let short: String = if name.chars().count() > 16 {
            name.chars().take(15).chain(['…']).collect()
        } else {
            (*name).into()
        };
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" class="end">{}</text>"#,
            left - 8.0,
            y + 4.0,
            text::html(&short)
        );
        let _ = write!(svg, r#"<path class="axis" d="M{low:.1} {y:.1}H{high:.1}"/>"#);
        let title = format!(
            "{name}: {} ({} to {})",
            number(estimate.mean),
            number(estimate.low),
            number(estimate.high)
        );
        let _ = write!(
            svg,
            "<circle class=\"score\" cx=\"{mean:.1}\" cy=\"{y:.1}\" \
            r=\"4.5\"><title>{}</title></circle>",
            text::html(&title)
        );
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}">{}</text>"#,
            high.max(mean) + 8.0,
            y + 4.0,
            number(estimate.mean)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Plots the scores of the controls and of the trial: dots in columns, or bars if there are many.
pub fn strip(controls: &[f64], score: f64, threshold: f64, unit: &str) -> String {
    const BINS: usize = 54;
    const MOST_DOTS: usize = 9;
    let (left, right, base) = (14.0, WIDTH - 14.0, 92.0);
    let finite = || controls.iter().copied().chain([score, threshold]).filter(|v| v.is_finite());
    let low = finite().fold(0.0, f64::min);
    let x = Axis::new(low, round_up(finite().fold(0.0, f64::max)), left, right);
    let mut bins = [0usize; BINS];
    for &control in controls.iter().filter(|c| !c.is_nan()) {
        bins[(((x.at(control) - left) / (right - left) * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let most = bins.iter().copied().max().unwrap_or(0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} 124\" role=\"img\" aria-label=\"{} controls, threshold {}, \
        score {}\">",
        controls.len(),
        number(threshold),
        number(score)
    );
    let _ = write!(svg, r#"<path class="axis" d="M{left} {base}H{right}"/>"#);
    let pitch = (right - left) / BINS as f64;
    for (bin, &held) in bins.iter().enumerate().filter(|(_, held)| **held > 0) {
        let at = left + (bin as f64 + 0.5) * pitch;
        if most <= MOST_DOTS {
            for k in 0..held {
                let _ = write!(
                    svg,
                    r#"<circle class="control" cx="{at:.1}" cy="{:.1}" r="2.7"/>"#,
                    base - 4.0 - 6.2 * k as f64
                );
            }
        } else {
            let height = (56.0 * held as f64 / most as f64).max(1.5);
            let _ = write!(
                svg,
                "<rect class=\"control\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" \
                height=\"{height:.1}\"><title>{held} controls</title></rect>",
                at - pitch * 0.45,
                base - height,
                pitch * 0.9
            );
        }
    }
    let at = x.at(threshold);
    let _ = write!(svg, r#"<path class="threshold" d="M{at:.1} 26V{base}"/>"#);
    let anchor = |at: f64| {
        if at < 90.0 {
            "start"
        } else if at > WIDTH - 90.0 {
            "end"
        } else {
            "mid"
        }
    };
    let _ = write!(
        svg,
        r#"<text x="{at:.1}" y="21" class="{}">threshold {}</text>"#,
        anchor(at),
        number(threshold)
    );
    let at = x.at(score);
    let _ = write!(svg, r#"<path class="score" d="M{at:.1} {:.1}l6 8l-6 8l-6 -8z"/>"#, base - 18.0);
    let _ = write!(
        svg,
        r#"<text x="{at:.1}" y="106" class="strong {}">score {}</text>"#,
        anchor(at),
        number(score)
    );
    // The ends of the axis, where the score's own label leaves room.
    if at > left + 110.0 {
        let _ = write!(svg, r#"<text x="{left}" y="106" class="start">{}</text>"#, number(x.from));
    }
    if at < right - 110.0 {
        let _ = write!(svg, r#"<text x="{right}" y="106" class="end">{}</text>"#, number(x.to));
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="121" class="mid soft">score{}</text></svg>"#,
        WIDTH / 2.0,
        text::html(&in_unit(unit))
    );
    svg
}

fn in_unit(unit: &str) -> String {
    if unit.is_empty() { String::new() } else { format!(", in{unit}") }
}

/// Largest number of rows and columns that a grid is still legible with.
const MOST_LAYERS: usize = 160;
const MOST_HEADS: usize = 160;

/// Returns the cell of a component in a heat map: its layer, and its head or `None` for an MLP.
pub fn heat_map_cell(component: &Component) -> Option<(usize, Option<usize>)> {
    match *component {
        Component::Head { layer, head } => Some((layer, Some(head))),
        Component::Attention { layer }
        | Component::Ssm { layer }
        | Component::TimeMix { layer } => Some((layer, Some(0))),
        Component::Mlp { layer } | Component::ChannelMix { layer } => Some((layer, None)),
        _ => None,
    }
}

/// Plots effects as a heat map: one row per layer, one column per head, the MLP at the right.
/// `None` if there is nothing to draw. Only rows and columns that occur are drawn, because indices
/// in a file may be anything.
pub fn heat_map(
    label: &str,
    effects: &[Effect],
    value: fn(&Effect) -> f64,
    set: &[Component],
) -> Option<String> {
    let mut cells: BTreeMap<(usize, Option<usize>), (f64, Component)> = BTreeMap::new();
    for effect in effects {
        let Some(key) = heat_map_cell(&effect.component) else { continue };
        let cell = (value(effect), effect.component);
        match effect.component {
            Component::Head { .. } | Component::Mlp { .. } | Component::ChannelMix { .. } => {
                cells.insert(key, cell);
            }
            // A mixer without heads stands where its one head would.
            _ => drop(cells.entry(key).or_insert(cell)),
        }
    }
    let layers: BTreeSet<usize> = cells.keys().map(|k| k.0).collect();
    let heads: BTreeSet<usize> = cells.keys().filter_map(|k| k.1).collect();
    if cells.is_empty() || layers.len() > MOST_LAYERS || heads.len() > MOST_HEADS {
        return None;
    }
    let (layers, heads): (Vec<usize>, Vec<usize>) =
        (layers.into_iter().collect(), heads.into_iter().collect());
    let (left, top) = (34.0, 22.0);
    // The MLP's column stands half a cell apart and is two cells wide.
    let cell_w = ((WIDTH - left - 4.0) / (heads.len() as f64 + 2.5)).min(34.0);
    let cell_h = if layers.len() <= 12 {
        22.0
    } else if layers.len() <= 40 {
        13.0
    } else {
        7.0
    };
    let mlp_x = left + (heads.len() as f64 + 0.5) * cell_w;
    let bottom = top + layers.len() as f64 * cell_h;
    let most = cells
        .values()
        .map(|c| c.0.abs())
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max)
        .clamp(0.05, 1.0);
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {:.0}" role="img" aria-label="{}">"#,
        bottom + 34.0,
        text::html(label)
    );
    if !heads.is_empty() {
        let (w, h) = (heads.len() as f64 * cell_w, bottom - top);
        let _ = write!(
            svg,
            r#"<rect class="field" x="{left}" y="{top}" width="{w:.1}" height="{h:.1}"/>"#
        );
    }
    let (w, h) = (2.0 * cell_w, bottom - top);
    let _ = write!(
        svg,
        r#"<rect class="field" x="{mlp_x:.1}" y="{top}" width="{w:.1}" height="{h:.1}"/>"#
    );
    let every =
        |n: usize, size: f64, room: f64| ((room / size).ceil() as usize).max(1).min(n.max(1));
    let step = every(heads.len(), cell_w, 20.0);
    for (column, head) in heads.iter().enumerate().step_by(step) {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" class="mid">{head}</text>"#,
            left + (column as f64 + 0.5) * cell_w,
            top - 6.0
        );
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" class="mid">MLP</text>"#,
        mlp_x + cell_w,
        top - 6.0
    );
    let step = every(layers.len(), cell_h, 13.0);
    for (row, layer) in layers.iter().enumerate().step_by(step) {
        let y = top + (row as f64 + 0.5) * cell_h + 4.0;
        let _ =
            write!(svg, r#"<text x="{:.1}" y="{y:.1}" class="end">L{layer}</text>"#, left - 5.0);
    }
    let mut outlines = String::new();
    for (&(layer, head), &(effect, component)) in &cells {
        let (Ok(row), Ok(column)) =
            (layers.binary_search(&layer), head.map_or(Ok(0), |h| heads.binary_search(&h)))
        else {
            continue;
        };
        let (x, w) = if head.is_some() {
            (left + column as f64 * cell_w, cell_w)
        } else {
            (mlp_x, 2.0 * cell_w)
        };
        let y = top + row as f64 * cell_h;
        let (w, h) = ((w - 1.0).max(0.5), cell_h - 1.0);
        if set.contains(&component) {
            let _ = write!(
                outlines,
                r#"<rect class="member" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}"/>"#
            );
        }
        let share = effect.abs() / most;
        let class = if effect.is_nan() {
            "odd"
        } else if effect < 0.0 {
            "cold"
        } else {
            "hot"
        };
        // Cells of next to no effect are the field itself: a page with 200 of these maps stays
        // small.
        if share < 0.03 {
            continue;
        }
        let opacity = if share.is_nan() { 1.0 } else { share.min(1.0) };
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" \
            opacity=\"{opacity:.2}\"><title>{component}: {}</title></rect>",
            percent(effect)
        );
    }
    svg.push_str(&outlines);
    // The scale: from the strongest against the glitch, over nothing, to the strongest for it.
    let scale_y = bottom + 12.0;
    let negative = cells.values().any(|c| c.0 < -0.03 * most);
    let mut x = left;
    for step in if negative { -4 } else { 0 }..=4i32 {
        let class = if step < 0 { "cold" } else { "hot" };
        let _ = write!(
            svg,
            r#"<rect class="field" x="{x:.1}" y="{scale_y:.1}" width="15" height="9"/>"#
        );
        if step != 0 {
            let opacity = f64::from(step.abs()) / 4.0;
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{scale_y:.1}\" width=\"15\" height=\"9\" \
                opacity=\"{opacity:.2}\"/>"
            );
        }
        x += 16.0;
    }
    let from = if negative { percent(-most) } else { "0".into() };
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" class=\"start\">{from} to {}</text><rect class=\"member\" \
        x=\"{:.1}\" y=\"{scale_y:.1}\" width=\"12\" height=\"9\"/><text x=\"{:.1}\" y=\"{:.1}\" \
        class=\"start\">in the set</text></svg>",
        x + 4.0,
        scale_y + 9.0,
        percent(most),
        WIDTH - 76.0,
        WIDTH - 60.0,
        scale_y + 9.0
    );
    Some(svg)
}

/// Plots a square matrix of pairs of components, each cell with its value and title; `None` if
/// there is nothing to draw. Shades follow the square root of a value, because a few pairs are
/// often a hundred times larger than the others.
pub fn matrix(
    label: &str,
    components: &[Component],
    cells: &BTreeMap<(usize, usize), (f64, String)>,
    outlined: &[(usize, usize)],
) -> Option<String> {
    if components.is_empty() || cells.is_empty() {
        return None;
    }
    let (left, top, n) = (88.0, 24.0, components.len());
    let size = ((WIDTH - left - 4.0) / n as f64).min(26.0);
    let bottom = top + n as f64 * size;
    let most =
        cells.values().map(|c| c.0.abs()).filter(|v| v.is_finite()).fold(0.0, f64::max).max(1e-9);
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {:.0}" role="img" aria-label="{}">"#,
        bottom + 30.0,
        text::html(label)
    );
    let width = n as f64 * size;
    let _ = write!(
        svg,
        r#"<rect class="field" x="{left}" y="{top}" width="{width:.1}" height="{width:.1}"/>"#
    );
    let step = (13.0 / size).ceil().max(1.0) as usize;
    for (i, component) in components.iter().enumerate().step_by(step) {
        let y = top + (i as f64 + 0.5) * size + 4.0;
        let _ =
            write!(svg, r#"<text x="{:.1}" y="{y:.1}" class="end">{component}</text>"#, left - 5.0);
    }
    // Columns in the order of the rows: their layers are enough to find one's way.
    let mut shown = left - 30.0;
    for (i, component) in components.iter().enumerate() {
        let (x, first) =
            (left + i as f64 * size, i == 0 || components[i - 1].layer() != component.layer());
        if first && x >= shown + 30.0 {
            let _ = write!(
                svg,
                r#"<text x="{x:.1}" y="{:.1}" class="start">L{}</text>"#,
                top - 7.0,
                component.layer()
            );
            shown = x;
        }
    }
    for (&(row, column), (value, title)) in cells {
        let (x, y) = (left + column as f64 * size, top + row as f64 * size);
        let class = if value.is_nan() {
            "odd"
        } else if *value < 0.0 {
            "cold"
        } else {
            "hot"
        };
        let share = (value.abs() / most).sqrt();
        let opacity = if share.is_nan() { 1.0 } else { share.min(1.0) };
        let side = (size - 1.0).max(0.5);
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" \
            height=\"{side:.1}\" opacity=\"{opacity:.2}\"><title>{}</title></rect>",
            text::html(title)
        );
    }
    for &(row, column) in outlined.iter().filter(|cell| cells.contains_key(cell)) {
        let (x, y) = (left + column as f64 * size, top + row as f64 * size);
        let side = (size - 1.0).max(0.5);
        let _ = write!(
            svg,
            r#"<rect class="member" x="{x:.1}" y="{y:.1}" width="{side:.1}" height="{side:.1}"/>"#
        );
    }
    let mut x = left;
    for step in -4..=4i32 {
        let y = bottom + 12.0;
        let _ = write!(svg, r#"<rect class="field" x="{x:.1}" y="{y:.1}" width="15" height="9"/>"#);
        if step != 0 {
            let class = if step < 0 { "cold" } else { "hot" };
            let opacity = (f64::from(step.abs()) / 4.0).sqrt();
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"15\" height=\"9\" \
                opacity=\"{opacity:.2}\"/>"
            );
        }
        x += 16.0;
    }
    let (from, to) = (number(-most), number(most));
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" class="start">{from} to {to} nats</text></svg>"#,
        x + 4.0,
        bottom + 21.0
    );
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(svg: &str) {
        assert!(!svg.contains("NaN") && !svg.contains("inf\"") && !svg.contains("inf "), "{svg}");
    }

    #[test]
    fn strange_numbers_never_reach_a_coordinate() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 0.0, 1e-320];
        for score in odd {
            for threshold in odd {
                check(&strip(&odd, score, threshold, " bits").replace("infinite", ""));
            }
        }
        check(&strip(&[], 1.0, 0.5, ""));
        let effects: Vec<Effect> = odd
            .iter()
            .enumerate()
            .map(|(i, &v)| Effect {
                component: Component::Head { layer: usize::MAX - i, head: i },
                necessity: v,
                sufficiency: v,
            })
            .collect();
        check(&heat_map("x", &effects, |e| e.necessity, &[]).unwrap().replace("infinite", ""));
        assert_eq!(heat_map("x", &[], |e| e.necessity, &[]), None);
        check(&by_layer("x", &[("a", &odd), ("b", &[]), ("c", &odd[..1])]));
        check(&by_layer("x", &[]));
        check(&by_step("x", &[("a", &odd), ("b", &[-1.0, 3.0])]));
        check(&curves("x", &[Line { name: "a", points: vec![] }]));
        check(&curves(
            "x",
            &[
                Line { name: "a", points: vec![(0, 0)] },
                Line { name: "b", points: vec![(u64::MAX, u64::MAX)] },
            ],
        ));
    }
}
