//! Interactions of pairs of components: one matrix per prompt.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::format::number;
use super::svg::matrix;
use crate::case::Case;
use crate::edit::{Component, Edit};
use crate::mutate::interactions::Interactions;
use crate::text;

/// Most matrices on a page, and most pairs listed beside each.
const MOST_TABLES: usize = 4;
const LISTED: usize = 6;
/// Most rows of a matrix that can still be told apart.
const MOST_COMPONENTS: usize = 64;

/// Writes the section, or nothing for a campaign that measured no interactions.
pub fn section(out: &mut String, tables: &[Interactions], cases: &[Case]) {
    if tables.is_empty() {
        return;
    }
    out.push_str(
        "<section><h2>Interactions</h2><p>Each cell is a pair of components: the effect of \
        lesioning both on the loss, minus the effects of each alone (nats per token). ",
    );
    out.push_str(
        "Orange: worse than the sum, as when each compensates for the other. Blue: less than the \
        sum, as when ",
    );
    out.push_str(
        "both are needed for the same thing. Diagonal: the effect of each alone. Outlined: \
        pairs that occur in one finding.</p><div class=\"pair\">",
    );
    for table in tables.iter().take(MOST_TABLES) {
        figure(out, table, &together(cases, &table.components));
    }
    out.push_str("</div></section>");
}

/// Returns the pairs of these components that some finding lesions together.
fn together(cases: &[Case], components: &[Component]) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for case in cases {
        let lesioned: Vec<usize> = case
            .edits
            .iter()
            .filter_map(|edit| match edit {
                Edit::Lesion { component, .. } => {
                    components.iter().position(|known| known == component)
                }
                _ => None,
            })
            .collect();
        pairs.extend(
            lesioned
                .iter()
                .flat_map(|&a| lesioned.iter().map(move |&b| (a, b)))
                .filter(|(a, b)| a != b),
        );
    }
    pairs
}

fn figure(out: &mut String, table: &Interactions, outlined: &[(usize, usize)]) {
    let n = table.components.len().min(MOST_COMPONENTS);
    // A file may hold anything: pairs of what is not there are left out.
    let pairs: Vec<_> = table.pairs.iter().filter(|p| p.a < n && p.b < n && p.a != p.b).collect();
    let mut cells: BTreeMap<(usize, usize), (f64, String)> = BTreeMap::new();
    for (i, &alone) in table.alone.iter().enumerate().take(n) {
        cells.insert(
            (i, i),
            (alone, format!("{} alone: {} nats", table.components[i], signed(alone))),
        );
    }
    for pair in &pairs {
        let title = format!(
            "{} and {}: {} nats",
            table.components[pair.a],
            table.components[pair.b],
            signed(pair.nats)
        );
        cells.insert((pair.a, pair.b), (pair.nats, title.clone()));
        cells.insert((pair.b, pair.a), (pair.nats, title));
    }
    let name = text::html(&super::card::clip(&table.prompt, 64));
    let label =
        format!("Interactions of {n} components on {}", super::card::clip(&table.prompt, 64));
    let Some(svg) = matrix(&label, &table.components[..n], &cells, outlined) else { return };
    let _ = write!(out, "<figure><figcaption>On <code>{name}</code></figcaption>{svg}");
    out.push_str(
        "<div class=\"scroll\"><table><thead><tr><th>pair</th><th class=\"n\">each alone</th>",
    );
    out.push_str("<th class=\"n\">interaction</th></tr></thead><tbody>");
    let alone = |i: usize| table.alone.get(i).map_or_else(|| "–".into(), |&x| signed(x));
    let mut largest = pairs;
    largest.sort_by(|x, y| y.nats.abs().total_cmp(&x.nats.abs()));
    for pair in largest.iter().take(LISTED) {
        let (a, b) = (table.components[pair.a], table.components[pair.b]);
        let _ = write!(
            out,
            "<tr><td>{a} and {b}</td><td class=\"n\">{}, {}</td>",
            alone(pair.a),
            alone(pair.b)
        );
        let _ = write!(out, "<td class=\"n\">{}</td></tr>", signed(pair.nats));
    }
    out.push_str("</tbody></table></div></figure>");
}

fn signed(value: f64) -> String {
    if value > 0.0 { format!("+{}", number(value)) } else { number(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::interactions::Interaction;
    use crate::testing::fake;

    fn made(tables: &[Interactions], cases: &[Case]) -> String {
        let mut out = String::new();
        section(&mut out, tables, cases);
        out
    }

    #[test]
    fn every_pair_has_its_cells_and_the_largest_a_row() {
        let table = fake::interactions();
        let page = made(std::slice::from_ref(&table), &[]);
        assert_eq!(page.matches("<title>L0.head0 and L0.head1: ").count(), 2);
        assert!(
            page.contains("<td>L0.head0 and L0.head1</td>") && page.contains("role=\"img\""),
            "{page}"
        );
        assert!(
            !page.contains("class=\"member\" x=\"0"),
            "nothing was found, and nothing is outlined"
        );
        assert!(made(&[], &[]).is_empty());
    }

    #[test]
    fn a_finding_of_two_lesions_is_outlined() {
        let table = fake::interactions();
        let mut case = crate::testing::sample::campaign().1.remove(0);
        let outlines = |case: &Case| {
            made(std::slice::from_ref(&table), std::slice::from_ref(case))
                .matches("class=\"member\"")
                .count()
        };
        let zero =
            |head| Edit::lesion(Component::Head { layer: 1, head }, crate::edit::Action::Zero);
        case.edits = vec![zero(0)];
        let without = outlines(&case);
        case.edits = vec![zero(0), zero(3)];
        assert_eq!(outlines(&case), without + 2);
    }

    #[test]
    fn hostile_tables_do_no_harm() {
        let mut table = fake::interactions();
        table.prompt = "<script>\u{202e}".into();
        table.alone = vec![f64::NAN, f64::INFINITY];
        table.pairs = [f64::NAN, f64::NEG_INFINITY, f64::MAX, 0.0]
            .map(|nats| Interaction { a: 1, b: usize::MAX, nats })
            .to_vec();
        table.pairs.push(Interaction { a: 0, b: 1, nats: f64::NAN });
        table.components.truncate(3);
        let page = made(&[table.clone()], &[]);
        assert!(
            !page.contains("<script>")
                && !page.contains("NaN")
                && !page.contains("inf\"")
                && !page.contains('\u{202e}'),
            "{page}"
        );
        table.components.clear();
        assert!(!made(&[table], &[]).contains("<svg"));
    }
}
