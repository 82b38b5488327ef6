//! The page of a suffix search: the loss curve and the cases.

use std::fmt::Write;

use super::card::{OPEN_CARDS, card};
use super::format::{count, number, percent, plural};
use super::glossary::legend;
use super::html::head;
use super::svg;
use crate::case::Case;
use crate::mutate::suffix::{Algorithm, Search};
use crate::{stats, text};

/// Returns the page of a suffix search.
pub fn suffix_page(search: &Search, cases: &[Case]) -> String {
    let (mut out, state, options) = (String::new(), &search.state, &search.options);
    head(&mut out, &search.model.name);
    let algorithm = match options.algorithm {
        Algorithm::Gcg => "greedy coordinate gradient",
        Algorithm::Beast => "beam search",
        Algorithm::Soft => "gradient descent on embeddings",
    };
    let short: String = search.model.fingerprint.chars().take(12).collect();
    let _ = write!(
        out,
        "<header><h1>A suffix for <span class=\"name\">{}</span></h1><p class=\"soft\">fingerprint \
        <code>{}</code> · {algorithm} · seed {} · {} · {} a step</p></header>",
        text::html(&search.model.name),
        text::html(&short),
        options.seed,
        plural(options.length as u64, "token"),
        plural(options.width as u64, "candidate")
    );
    out.push_str("<ul class=\"tiles\">");
    let mut tile = |value: &str, name: &str, note: &str| {
        let _ = write!(out, "<li><b>{value}</b><span>{name}</span><small>{note}</small></li>");
    };
    let prompts = state.reached.iter().map(|reached| reached.prompts).max().unwrap_or(0);
    let of = format!("{} of {}", count(prompts as u64), count(search.prompts.len() as u64));
    let first = state.reached.iter().map(|reached| reached.step).min();
    let note = first.map_or("by greedy decoding; no suffix reached it".to_owned(), |step| {
        format!("by greedy decoding; first in step {step}")
    });
    tile(&of, "prompts reached", &note);
    if let Some(held) = search.held_out {
        let (low, high) = stats::wilson(held.reached, held.prompts, 1.96);
        let of = format!("{} of {}", count(held.reached), count(held.prompts));
        tile(&of, "held-out prompts reached", &format!("{} to {}", percent(low), percent(high)));
    }
    let before = state.trace.first().map_or_else(
        || "nothing measured".into(),
        |step| format!("{} after the first step", number(step.loss)),
    );
    tile(&number(state.best.loss), "nats per token at best", &before);
    let exact: usize = state.trace.iter().map(|step| step.exact).sum();
    let drawn: usize = state.trace.iter().map(|step| step.candidates).sum();
    tile(
        &count(drawn as u64),
        "candidates",
        &format!(
            "in {}; {} of them (with merges) run to the last layer",
            plural(state.step as u64, "step"),
            count(exact as u64)
        ),
    );
    if let Some(soft) = &state.soft {
        tile(
            &number(soft.best),
            "nats per token with free embeddings",
            &format!("tokens are {} worse", number(state.best.loss - soft.best)),
        );
    }
    if !state.reached.is_empty() {
        let round_trips = state.reached.iter().filter(|reached| reached.round_trips).count();
        tile(
            &percent(round_trips as f64 / state.reached.len() as f64),
            "round-trip",
            "of the suffixes that reach the goal tokenize to the same ids again",
        );
    }
    out.push_str("</ul>");
    let losses = |of: fn(&crate::mutate::suffix::Step) -> f64| {
        state.trace.iter().map(of).collect::<Vec<f64>>()
    };
    let (best, loss) = (losses(|step| step.best), losses(|step| step.loss));
    if !best.is_empty() {
        let plot = svg::by_step(
            "loss after every step, nats per token",
            &[("best so far", &best), ("this step", &loss)],
        );
        let _ = write!(
            out,
            "<section><h2>Search</h2><div class=\"pair\"><figure><figcaption>Loss, nats per token: \
            <span class=\"key0\">— best so far</span>, <span class=\"key1\">- - this \
            step</span></figcaption>{plot}</figure></div></section>"
        );
    }
    out.push_str("<section><h2>Findings</h2>");
    if cases.is_empty() {
        out.push_str(
            "<p>No case was kept: no suffix reached the goal, or suffixes of ordinary \
            tokens score as high.</p>",
        );
    }
    cases.iter().enumerate().for_each(|(i, found)| card(&mut out, found, i, i < OPEN_CARDS, None));
    out.push_str("</section>");
    legend(&mut out);
    out.push_str("</main></body></html>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::suffix::{
        Goal, GoalKind, HeldOut, Mean, Prompt, Reached, ScoredSuffix, SearchState, Step,
        SuffixOptions,
    };
    use crate::testing::sample::{balanced, campaign, saying};

    fn search(steps: usize, odd: f64) -> Search {
        let step = |i: usize| Step {
            loss: 3.0 / (i + 1) as f64,
            best: odd,
            candidates: 256,
            exact: 72,
            reached: 0,
            prompts: 1,
        };
        let reached =
            Reached { step: 2, prompts: 1, suffix: vec![3], loss: 0.2, round_trips: true };
        Search {
            schema_version: 1,
            model: campaign().1[0].model.clone(),
            prompts: vec![Prompt { before: vec![1], after: vec![] }; 2],
            goal: Goal { kind: GoalKind::Target, continuation: vec![4], mean: Mean::Arithmetic },
            options: SuffixOptions {
                algorithm: Algorithm::Gcg,
                seed: 1,
                length: 1,
                steps,
                width: 256,
                last_width: 256,
                top_k: 256,
                replace: 1,
                buffer: 0,
                merge: 8,
                copies: true,
                text: true,
                rungs: vec![],
            },
            state: SearchState {
                step: steps,
                buffer: vec![],
                best: ScoredSuffix { suffix: vec![3], loss: odd },
                reached: if steps > 0 { vec![reached] } else { vec![] },
                fails: None,
                prompts: 1,
                trace: (0..steps).map(step).collect(),
                soft: None,
            },
            held_out: (steps > 0).then_some(HeldOut { reached: 3, prompts: 4 }),
        }
    }

    #[test]
    fn a_page_is_whole_whatever_the_search() {
        for (steps, odd) in [(0, f64::INFINITY), (5, 0.2), (5, f64::NAN)] {
            let page = suffix_page(&search(steps, odd), &[]);
            balanced(&page).unwrap();
            assert!(!page.contains("NaN") && page.contains("No case was kept"), "{steps} {odd}");
        }
        let page = suffix_page(&search(5, 0.2), &saying("<script>x</script>").1);
        balanced(&page).unwrap();
        assert!(
            page.contains("1 of 2")
                && page.contains("first in step 2")
                && page.contains("360 of them (with merges) run to the last layer")
        );
        assert!(page.contains("3 of 4") && page.contains("30% to 95%"));
        assert!(!page.contains("<script>x"));
    }
}
