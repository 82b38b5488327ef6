//! The graph of a case, drawn: positions from left to right, layers from bottom to top.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::format::{percent, quoted};
use crate::edit::Component;
use crate::localize::{Graph, Node};
use crate::text;

/// Size of a node, and of the room around it.
const NODE: (f64, f64) = (92.0, 24.0);
const GAP: (f64, f64) = (12.0, 30.0);
/// Room at the left, for the names of the layers.
const LEFT: f64 = 34.0;
/// The share of the effect from which a node's direct effect on the logits is drawn.
const LEAST_DIRECT: f64 = 0.05;
/// Characters of a token that are shown.
const MOST_TEXT: usize = 14;

/// Where a node stands: its layer, and whether it is an MLP.
fn level(component: &Component) -> (usize, bool) {
    let mlp = matches!(component, Component::Mlp { .. } | Component::ChannelMix { .. });
    (component.layer(), mlp)
}

/// Draws a graph; `None` if it has no nodes. Indices in a file may be anything, so what has no
/// place is left out.
pub fn svg(graph: &Graph) -> Option<String> {
    let mut columns: BTreeMap<usize, (&str, usize)> = BTreeMap::new();
    let mut rows: BTreeMap<(usize, bool), BTreeMap<usize, usize>> = BTreeMap::new();
    let mut slots = Vec::new();
    for node in &graph.nodes {
        let beside = rows.entry(level(&node.component)).or_default();
        let beside = beside.entry(node.position).or_default();
        slots.push(*beside);
        *beside += 1;
        let column = columns.entry(node.position).or_insert((node.text.as_str(), 0));
        column.1 = column.1.max(*beside);
    }
    if graph.nodes.is_empty() {
        return None;
    }
    let mut left = LEFT;
    let mut starts: BTreeMap<usize, f64> = BTreeMap::new();
    for (position, (_, wide)) in &columns {
        starts.insert(*position, left);
        left += *wide as f64 * (NODE.0 + GAP.0) + GAP.0;
    }
    let width = left.max(LEFT + 2.0 * (NODE.0 + GAP.0));
    let height = (rows.len() + 2) as f64 * (NODE.1 + GAP.1) + 18.0;
    // Row 0 is the logits, the last one the edits.
    let y = |row: usize| row as f64 * (NODE.1 + GAP.1) + 4.0;
    let row_of: BTreeMap<(usize, bool), usize> =
        rows.keys().rev().enumerate().map(|(row, level)| (*level, row + 1)).collect();
    let place = |(node, slot): (&Node, &usize)| {
        let x = starts[&node.position] + *slot as f64 * (NODE.0 + GAP.0);
        (x, y(row_of[&level(&node.component)]))
    };
    let places: Vec<(f64, f64)> = graph.nodes.iter().zip(&slots).map(place).collect();
    let center = LEFT + (width - LEFT) / 2.0;
    let (logits, edits) =
        ((center - NODE.0 / 2.0, y(0)), (center - NODE.0 / 2.0, y(rows.len() + 1)));
    let mut svg = format!(
        "<svg class=\"graph\" viewBox=\"0 0 {width:.0} {height:.0}\" \
        style=\"max-width:{width:.0}px\" role=\"img\" aria-label=\"the components that make the \
        effect, and what each passes to others\">"
    );
    for (level, row) in &row_of {
        let _ = write!(
            svg,
            r#"<text x="{:.0}" y="{:.0}" class="end soft">L{}</text>"#,
            LEFT - 6.0,
            y(*row) + 16.0,
            level.0
        );
    }
    let line = |from: (f64, f64), to: (f64, f64), effect: f64, name: &str| {
        let (x1, y1) = (from.0 + NODE.0 / 2.0, from.1);
        let (x2, y2) = (to.0 + NODE.0 / 2.0, to.1 + NODE.1);
        let wide = 1.0 + 5.0 * effect.clamp(0.0, 1.0);
        let bend = ((y1 - y2) / 2.0).max(12.0);
        format!(
            "<path class=\"edge\" d=\"M{x1:.0} {y1:.0}C{x1:.0} {:.0} {x2:.0} {:.0} {x2:.0} \
            {y2:.0}\" stroke-width=\"{wide:.1}\"><title>{name}: {}</title></path>",
            y1 - bend,
            y2 + bend,
            percent(effect.clamp(0.0, 1.0))
        )
    };
    for edge in &graph.edges {
        let (Some(to), Some(to_node)) = (places.get(edge.to), graph.nodes.get(edge.to)) else {
            continue;
        };
        let from = match edge.from {
            None => Some((edits, "the edits".to_owned())),
            Some(from) => places
                .get(from)
                .zip(graph.nodes.get(from))
                .map(|(place, node)| (*place, node.component.to_string())),
        };
        let Some((from, name)) = from.filter(|_| edge.effect.is_finite()) else { continue };
        svg += &line(from, *to, edge.effect, &format!("{name} to {}", to_node.component));
    }
    for (node, place) in graph.nodes.iter().zip(&places) {
        if node.direct >= LEAST_DIRECT {
            svg += &line(*place, logits, node.direct, &format!("{} to the logits", node.component));
        }
    }
    let node = |(x, y): (f64, f64), name: &str, title: &str| {
        format!(
            "<g class=\"node\"><rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{}\" height=\"{}\" \
            rx=\"4\"/><text x=\"{:.0}\" y=\"{:.0}\" class=\"mid\">{}</text>\
            <title>{}</title></g>",
            NODE.0,
            NODE.1,
            x + NODE.0 / 2.0,
            y + 16.0,
            text::html(name),
            text::html(title)
        )
    };
    svg += &node(logits, "logits", "the symptom's log-probability");
    svg += &node(edits, "edits", "the edits of the case");
    for (at, place) in graph.nodes.iter().zip(&places) {
        let name = at.component.to_string();
        let title = format!(
            "{name} at position {}: patching it alone removes {}, direct effect {}",
            at.position,
            percent(at.necessity.clamp(0.0, 1.0)),
            percent(at.direct.clamp(0.0, 1.0))
        );
        svg += &node(*place, &name, &title);
    }
    for (position, (token, wide)) in &columns {
        let x = starts[position] + (*wide as f64 * (NODE.0 + GAP.0) - GAP.0) / 2.0;
        let token: String = token.chars().take(MOST_TEXT).collect();
        let _ = write!(
            svg,
            r#"<text x="{x:.0}" y="{:.0}" class="mid soft">{} ({position})</text>"#,
            height - 6.0,
            text::html(&quoted(&token))
        );
    }
    svg += "</svg>";
    Some(svg)
}
