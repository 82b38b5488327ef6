//! Measurements of recurrent states at the end of a row: how large they are, and how much of the
//! beginning of the sequence is left in them.
//!
//! The second is measured by a counterfactual: the same sequence with the first half of its prompt
//! reversed. If the final states are equal, the order of the beginning has been forgotten.

use super::batching::forwards;
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use super::observation::Request;
use crate::edit::{Edit, Layout};
use crate::error::{Error, Result};
use crate::model::batch::{KvStore, Row};
use crate::model::{Forward, Output, Pooled};

impl ModelEvaluator<'_> {
    /// Returns the states after a token, by layer, without the values stored behind their parts
    /// (RWKV-4's exponents).
    fn states_after<'s>(
        &'s self,
        store: &'s KvStore,
        token: usize,
    ) -> impl Iterator<Item = (usize, &'s [f32])> {
        store.layers.iter().enumerate().filter_map(move |(layer, cache)| {
            let (parts, size) = self.model.config.state_parts(layer);
            Some((layer, &cache.states.get(&token)?.scan[..parts * size]))
        })
    }

    /// Returns [`Observation::state_norms`](super::Observation::state_norms) at a token.
    pub(super) fn state_norms(&self, output: &Output<Pooled>, token: usize) -> Vec<(usize, f32)> {
        let Some(store) = &output.kv else { return Vec::new() };
        let norm = |state: &[f32]| {
            let square: f64 = state.iter().map(|s| f64::from(*s).powi(2)).sum();
            (0.5 * square.max(f64::MIN_POSITIVE).ln()) as f32
        };
        self.states_after(store, token).map(|(layer, state)| (layer, norm(state))).collect()
    }

    /// Measures [`Observation::memory`](super::Observation::memory) of each request: two rows a
    /// request, one with the beginning of its prompt reversed, many requests a forward.
    pub(super) fn memory(&self, requests: &[&Request]) -> Result<Vec<f32>> {
        let layouts: Vec<[Layout; 2]> =
            requests.iter().map(|request| self.reversed_too(request)).collect();
        let mut memory = Vec::with_capacity(requests.len());
        for chunk in
            forwards(requests.iter().zip(&layouts), |(_, layouts)| 2 * layouts[0].ids.len())
        {
            let mut forward = Forward { keep_ends: true, ..Forward::default() };
            let (mut tokens, mut ends) = (0, Vec::new());
            for (request, layouts) in chunk {
                for layout in layouts {
                    let place =
                        Place { tokens: tokens..tokens + layout.ids.len(), position: 0, layer: 0 };
                    tokens = place.tokens.end;
                    Lowering {
                        baselines: self,
                        trial: &request.trial,
                        layout,
                        place,
                        hooks: &mut forward.hooks,
                    }
                    .run(&[])?;
                    forward.rows.push(Row::new(layout.ids.clone()));
                    ends.push(tokens - 1);
                }
            }
            let store = self
                .forward(&forward)?
                .kv
                .ok_or_else(|| Error::internal("the states of a forward were not kept"))?;
            memory.extend(ends.chunks_exact(2).map(|ends| self.distance(&store, ends[0], ends[1])));
        }
        Ok(memory)
    }

    /// Returns the layout of a request, and the same with the first half of the prompt reversed.
    /// The reversal ends before the first edited position, so that it moves no edit.
    fn reversed_too(&self, request: &Request) -> [Layout; 2] {
        let layout = request.trial.layout();
        let bos = usize::from(
            self.model.config.bos_token_id.is_some_and(|bos| layout.ids.first() == Some(&bos)),
        );
        let named = request.trial.edits.iter().flat_map(Edit::positions);
        let edited = named.filter_map(|position| layout.at(position)).min();
        let half = (layout.prompt_len / 2).min(edited.unwrap_or(usize::MAX)).max(bos);
        let mut other = layout.clone();
        other.ids[bos..half].reverse();
        [layout, other]
    }

    /// Returns the distance between the states after two tokens, over the norm of the first, mean
    /// over the recurrent layers.
    fn distance(&self, store: &KvStore, a: usize, b: usize) -> f32 {
        let pairs = self.states_after(store, a).zip(self.states_after(store, b));
        let distances: Vec<f32> = pairs
            .map(|((_, a), (_, b))| {
                let difference: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
                (difference / a.iter().map(|a| a * a).sum::<f32>().max(f32::MIN_POSITIVE)).sqrt()
            })
            .collect();
        distances.iter().sum::<f32>() / distances.len().max(1) as f32
    }
}
