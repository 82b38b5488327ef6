//! What flagged components have in common: heads that read the same keys and values, weights that
//! write to the same channel of the residual stream.

use std::collections::BTreeMap;

use serde::Serialize;

use super::row::LesionRow;
use super::sets::{Baseline, set_of_lesions};
use super::texts::Text;
use crate::edit::{Action, Component, Edit, Matrix};
use crate::error::Result;
use crate::evaluate::ModelEvaluator;
use crate::stats;

/// The heads that share one key/value head (grouped-query attention, Ainslie et al. 2023), of which
/// at least one is flagged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadGroup {
    /// The layer.
    pub layer: usize,
    /// The key/value head.
    pub kv_head: usize,
    /// The heads.
    pub heads: Vec<usize>,
    /// Effect of removing all of them at once, nats per token.
    pub effect: f64,
    /// Sum of their effects alone, nats per token.
    pub sum_of_effects: f64,
}

/// A channel of the residual stream that flagged weights write to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WrittenChannel {
    /// The channel.
    pub channel: usize,
    /// The flagged weights that write to it, costliest first.
    pub weights: Vec<Component>,
    /// The largest magnitude in the channel after the layer of the costliest weight.
    pub largest: f64,
    /// The position of it.
    pub position: usize,
    /// `largest` in medians of all magnitudes of that residual stream.
    pub times_median: f64,
    /// Whether it is a massive activation: above 100, and above 1,000 medians (Sun et al. 2024,
    /// section 2).
    pub massive: bool,
    /// The share of the costliest weight's effect that is left where the weight is lesioned at the
    /// first token alone.
    pub through_first_token: f64,
}

/// Measures the groups of flagged heads; none where every head has its own keys and values.
pub fn head_groups(
    evaluator: &ModelEvaluator,
    texts: &[Text],
    rows: &[LesionRow],
    action: Action,
) -> Result<Vec<HeadGroup>> {
    let config = &evaluator.model.config;
    let effects: BTreeMap<Component, f64> = rows.iter().map(|r| (r.component, r.effect)).collect();
    let mut members: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.is_flagged()) {
        let Component::Head { layer, head } = row.component else { continue };
        if config.mixer(layer) != (Component::Attention { layer }) {
            continue;
        }
        let size = config.group();
        let kv_head = head / size;
        let heads: Vec<usize> = (kv_head * size..(kv_head + 1) * size).collect();
        // With a limit, some heads of a group may not have been swept.
        let all = heads.iter().all(|&head| effects.contains_key(&Component::Head { layer, head }));
        if size > 1 && all {
            members.insert((layer, kv_head), heads);
        }
    }
    let of = |(layer, heads): (usize, &[usize])| -> Vec<Component> {
        heads.iter().map(|&head| Component::Head { layer, head }).collect()
    };
    let sets: Vec<Vec<Edit>> = members
        .iter()
        .map(|((layer, _), heads)| set_of_lesions(&of((*layer, heads)), action))
        .collect();
    let joint = mean_effects(evaluator, texts, &sets)?;
    Ok(members
        .iter()
        .zip(joint)
        .map(|((&(layer, kv_head), heads), effect)| HeadGroup {
            layer,
            kv_head,
            heads: heads.clone(),
            effect,
            sum_of_effects: of((layer, heads)).iter().filter_map(|c| effects.get(c)).sum(),
        })
        .collect())
}

/// Measures the channels that flagged weights write to, most weights first.
pub fn written_channels(
    evaluator: &ModelEvaluator,
    texts: &[Text],
    rows: &[LesionRow],
    action: Action,
) -> Result<Vec<WrittenChannel>> {
    let d = evaluator.model.config.hidden_size;
    // Rows are in order of their losses, and so are the weights of a channel.
    let mut writers: BTreeMap<usize, Vec<&LesionRow>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.is_flagged()) {
        if let Component::Weight {
            matrix:
                Matrix::Down | Matrix::O | Matrix::SsmOut | Matrix::TimeOut | Matrix::ChannelValue,
            out,
            ..
        } = row.component
        {
            writers.entry(out).or_default().push(row);
        }
    }
    let at_first: Vec<Vec<Edit>> = writers
        .values()
        .map(|rows| {
            let component = rows[0].component;
            vec![Edit::Lesion { component, action, position: Some(0) }]
        })
        .collect();
    let first = mean_effects(evaluator, texts, &at_first)?;
    let mut channels = Vec::new();
    for ((channel, rows), first) in writers.into_iter().zip(first) {
        // Largest magnitude, position, median of that text.
        let mut peak = (0f32, 0, 0f64);
        for text in texts {
            let stream = evaluator.residual_stream(&text.ids(), rows[0].component.layer() + 1)?;
            let largest = stream
                .chunks_exact(d)
                .map(|x| x[channel].abs())
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(&b.1));
            let Some((position, largest)) = largest.filter(|(_, x)| *x > peak.0) else { continue };
            let magnitudes: Vec<f64> = stream.iter().map(|x| f64::from(x.abs())).collect();
            peak = (largest, position, stats::median(&magnitudes));
        }
        let (largest, position, median) = peak;
        let times_median = f64::from(largest) / median.max(f64::MIN_POSITIVE);
        channels.push(WrittenChannel {
            channel,
            weights: rows.iter().map(|row| row.component).collect(),
            largest: largest.into(),
            position,
            times_median,
            massive: largest > 100.0 && times_median > 1000.0,
            through_first_token: first / rows[0].effect,
        });
    }
    channels.sort_by(|a, b| b.weights.len().cmp(&a.weights.len()).then(a.channel.cmp(&b.channel)));
    Ok(channels)
}

/// Returns the mean effect of each set of edits over the texts, nats per token.
fn mean_effects(
    evaluator: &ModelEvaluator,
    texts: &[Text],
    sets: &[Vec<Edit>],
) -> Result<Vec<f64>> {
    let mut means = vec![0.0; sets.len()];
    for text in texts.iter().filter(|_| !sets.is_empty()) {
        let effects = Baseline::new(evaluator, &text.trial)?.effects(sets, &|_, _| {})?;
        means.iter_mut().zip(effects).for_each(|(mean, e)| *mean += e.nats / texts.len() as f64);
    }
    Ok(means)
}
