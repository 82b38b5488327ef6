//! The summary of a search for a suffix, for a terminal.

use super::localization::attribution_table;
use crate::case::Case;
use crate::model::Model;
use crate::mutate::suffix::{HeldOut, Search};
use crate::stats;
use crate::text::{escape, fit};

/// Standard deviations of a 95% interval.
const Z: f64 = 1.96;

/// Returns the summary, a line a fact. `model` decodes the tokens; `round_trips` says whether the
/// best suffix, written as text in its first prompt, is read as the same tokens.
pub fn suffix_terminal(
    search: &Search,
    cases: &[Case],
    model: &Model,
    round_trips: bool,
    columns: usize,
) -> String {
    let state = &search.state;
    let mut lines = vec![match state.trace.first() {
        Some(step) => format!(
            "loss      {:.3} after the first step, {:.3} at best",
            step.loss, state.best.loss
        ),
        None => format!("loss      {:.3} to begin with; no step was made", state.best.loss),
    }];
    let text = fit(&model.decode(&state.best.suffix), columns.saturating_sub(16));
    lines.push(format!("suffix    {text}"));
    lines.push(format!(
        "as text   {}",
        match round_trips {
            true => "encodes to the same tokens (round-trips)",
            false => "encodes to other tokens: only ids give this suffix",
        }
    ));
    if let Some(soft) = &state.soft {
        let says = soft.reached.map_or("do not reach the goal".into(), |step| {
            format!("reach the goal, from step {step} on")
        });
        let gap = state.best.loss - soft.best;
        lines.push(format!(
            "soft      embeddings get to {:.3} and {says}; tokens stay {gap:.3} behind",
            soft.best
        ));
    }
    lines.push(match state.reached.first() {
        None => "reached   never: the model does not do it, greedily, after any suffix that was \
                 tried"
            .to_owned(),
        Some(reached) => format!(
            "reached   by {} suffixes, in {} of {} prompts, first in step {}",
            state.reached.len(),
            reached.prompts,
            search.prompts.len(),
            state.reached.iter().map(|r| r.step).min().unwrap_or(0)
        ),
    });
    if let Some(HeldOut { reached, prompts }) = search.held_out {
        let (low, high) = stats::wilson(reached, prompts, Z);
        lines.push(format!(
            "held out  {reached} of {prompts} prompts ({:.0}% to {:.0}%)",
            100.0 * low,
            100.0 * high
        ));
    }
    if cases.is_empty() && !state.reached.is_empty() {
        lines.push(
            "case      none: random suffixes score as high, or the run ended before controls were \
             evaluated"
                .to_owned(),
        );
    }
    cases.iter().for_each(|case| lines.extend(case_lines(case, columns)));
    lines.join("\n") + "\n"
}

fn case_lines(case: &Case, columns: usize) -> Vec<String> {
    let needed = case.edits.len();
    let judged =
        case.minimization.as_ref().map_or(String::new(), |m| format!(", {} judged", m.calls));
    let mut lines = vec![
        format!("case      {}: {needed} tokens are needed{judged}", escape(&case.id)),
        format!("          {}", fit(&case.comment.title, columns.saturating_sub(10))),
        format!(
            "          it says: {}",
            fit(&case.comment.generated_after, columns.saturating_sub(19))
        ),
    ];
    let attribution = case.localization.as_ref().and_then(|found| found.attribution.as_ref());
    let table = attribution.map(attribution_table).unwrap_or_default();
    lines.extend(table.into_iter().map(|line| format!("  {line}")));
    lines
}
