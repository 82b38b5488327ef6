//! Leaves out what nobody reads: where a patch replaces the output of a block, the block is not
//! computed. Which other tokens are in a batch changes no bit of a token's values, so neither does
//! leaving some out.

use std::ops::Range;

use super::attention::Attention;
use super::mlp::Dense;
use super::pass::{PackedRows, Pass};
use crate::edit::Matrix;
use crate::error::Result;
use crate::model::arithmetic::kernels::Rope;
use crate::model::arithmetic::{Numerics, Span};
use crate::model::batch::Row;
use crate::model::hooks::{Block, Hooks, Knockout, Site};

impl<N: Numerics> Pass<'_, N> {
    /// Returns whether any of these is captured or edited in a layer.
    fn touches(&self, layer: usize, sites: &[Site], matrices: &[Matrix]) -> bool {
        sites.iter().any(|site| self.captures(layer, *site))
            || matrices.iter().any(|matrix| self.hooks.weights.contains_key(&(layer, *matrix)))
    }

    /// Applies an MLP to its normalised input `x`, `[tokens, d_model]`, at the tokens whose output
    /// is read; the others get zeros.
    pub fn dense(
        &self,
        layer: usize,
        dense: &Dense,
        x: &N::Array,
        tokens: usize,
    ) -> Result<N::Array> {
        let (mode, d) = (self.mode, self.model.config.hidden_size);
        let matrices = [Matrix::Gate, Matrix::Up, Matrix::Down];
        if self.touches(layer, &[Site::Neurons, Site::MlpOut], &matrices)
            || !self.blocks(layer, Site::Neurons).is_empty()
        {
            return dense.forward(self, layer, x);
        }
        let idle = self.hooks.idle(layer, &[Site::MlpOut, Site::ResidPost], d);
        let live: Vec<usize> = (0..tokens).filter(|t| idle.get(*t) != Some(&true)).collect();
        match (live.len() < tokens).then(|| mode.gather(x, &live)).flatten() {
            None => dense.forward(self, layer, x),
            Some(_) if live.is_empty() => mode.array(vec![0.0; tokens * d], d),
            Some(x) => mode.scatter(&dense.forward(self, layer, &x)?, &live, tokens),
        }
    }

    /// Applies attention to its normalised input `x`, `[tokens, d_model]`, in the rows that have a
    /// token whose output is read; the others get zeros. `None` if it has to be applied to all.
    pub fn attention_of_live_rows(
        &self,
        layer: usize,
        attention: &Attention,
        x: &N::Array,
        rope: Option<&Rope>,
        PackedRows { rows, spans }: PackedRows,
    ) -> Result<Option<N::Array>> {
        let (mode, d) = (self.mode, self.model.config.hidden_size);
        let matrices = [Matrix::Q, Matrix::K, Matrix::V, Matrix::O];
        if self.touches(layer, &[Site::Z, Site::Pattern, Site::AttnOut], &matrices) {
            return Ok(None);
        }
        let idle = self.hooks.idle(layer, &[Site::AttnOut], d);
        let is_live = |span: &&Span| span.tokens.clone().any(|t| idle.get(t) != Some(&true));
        let live: Vec<usize> = (0..spans.len()).filter(|row| is_live(&&spans[*row])).collect();
        if live.len() == spans.len() {
            return Ok(None);
        }
        let tokens: Vec<usize> = live.iter().flat_map(|row| spans[*row].tokens.clone()).collect();
        let Some(x) = mode.gather(x, &tokens) else { return Ok(None) };
        let all = spans.last().map_or(0, |span| span.tokens.end);
        if live.is_empty() {
            return mode.array(vec![0.0; all * d], d).map(Some);
        }
        // The rows and their edits, where they are in the smaller batch.
        let (mut hooks, mut packed, mut moved) = (Hooks::default(), Vec::new(), Vec::new());
        let mut start = 0;
        for row in &live {
            let Span { tokens, position } = spans[*row].clone();
            moved.push(Span { tokens: start..start + tokens.len(), position });
            packed.push(Row { prefix: rows[*row].prefix.clone(), ..Row::default() });
            start += tokens.len();
        }
        let row_of = |tokens: &Range<usize>| {
            let has = |s: &Span| s.tokens.start <= tokens.start && tokens.end <= s.tokens.end;
            spans.iter().position(has)
        };
        let moved_with = |row: usize, tokens: &Range<usize>| {
            let at = live.binary_search(&row).ok()?;
            let first = tokens.start - spans[row].tokens.start + moved[at].tokens.start;
            Some(first..first + tokens.len())
        };
        for block in self.blocks(layer, Site::Z) {
            let Some(row) = row_of(&block.tokens) else { return Ok(None) };
            if let Some(tokens) = moved_with(row, &block.tokens) {
                hooks.push(layer, Site::Z, Block { tokens, ..block.clone() });
            }
        }
        for knockout in self.knockouts(layer) {
            let Some(row) = row_of(&knockout.tokens) else { return Ok(None) };
            if let Some(tokens) = moved_with(row, &knockout.tokens) {
                hooks.push_knockout(layer, Knockout { tokens, ..knockout.clone() });
            }
        }
        let pass = Pass::new(mode, self.model, &hooks);
        let packed = PackedRows { rows: &packed, spans: &moved };
        let out = attention.forward(&pass, layer, &x, rope, packed)?.out;
        mode.scatter(&out, &tokens, all).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::Rng as _;

    use super::*;
    use crate::model::arithmetic::fused::Fused;
    use crate::model::batch::Segment;
    use crate::model::hooks::Change;
    use crate::model::layers::{MixerWeights, Mlp};
    use crate::model::{Forward, Model};
    use crate::rng;

    /// Hooks that replace the outputs of most blocks of rows of `lengths` tokens, or of some of
    /// their tokens, and edit heads and cut attention edges here and there.
    fn hooks(model: &Model, lengths: &[usize], rng: &mut rng::Rng) -> Hooks {
        let (d, mut hooks, mut start) = (model.config.hidden_size, Hooks::default(), 0);
        for len in lengths {
            for layer in 0..model.config.num_hidden_layers {
                for (site, width) in [(Site::AttnOut, d), (Site::MlpOut, d), (Site::Z, d / 4)] {
                    let tokens = match rng.random_range(0..4) {
                        0 => start..start,
                        1 => start + rng.random_range(0..*len)..start + len,
                        _ => start..start + len,
                    };
                    let values = (0..tokens.len() * width).map(|_| rng.random_range(-1.0..1.0f32));
                    let shift: Arc<[f32]> = values.collect();
                    let change = Change::Affine { scale: 0.0, shift: Some(shift) };
                    if !tokens.is_empty() {
                        let block = Block { tokens, columns: 0..width, change };
                        hooks.push(layer, site, block);
                    }
                }
                let tokens = start + rng.random_range(0..*len)..start + len;
                let heads = 0..rng.random_range(1..=model.config.num_attention_heads);
                if let keys @ 1.. = tokens.start - start {
                    let key = rng.random_range(0..keys);
                    hooks.push_knockout(layer, Knockout { tokens, heads, key });
                }
            }
            start += len;
        }
        hooks
    }

    #[test]
    fn leaving_out_what_is_replaced_changes_no_bit() {
        let mut rng = rng::stream(1, "live tokens");
        for name in ["builtin:dense", "builtin:moe"] {
            let Ok(model) = Model::load(name) else { continue };
            let ids: Vec<u32> = (0..40).map(|_| rng.random_range(0..4096)).collect();
            let kept =
                Forward { rows: vec![Row::new(&ids[..7])], keep_kv: true, ..Forward::default() };
            let store = model.forward(&kept).unwrap().kv.unwrap();
            for _ in 0..20 {
                let lengths = [9, 1, 14, 5];
                let mut rows: Vec<Row> = lengths.map(|len| Row::new(&ids[..len])).to_vec();
                let (store, start, len) = (store.clone(), 0, 7);
                rows[2].prefix = vec![Segment { store, start, len }];
                let hooks = hooks(&model, &lengths, &mut rng);
                let run = |hooks: Hooks| {
                    let forward = Forward { rows: rows.clone(), hooks, ..Forward::default() };
                    model.forward(&forward).unwrap().residual.to_vec()
                };
                let left_out = run(hooks.clone());
                // What is captured is computed.
                let sites = [Site::Z, Site::MlpOut];
                let capture = (0..model.config.num_hidden_layers)
                    .flat_map(|layer| sites.map(|site| (layer, site)));
                let all = run(Hooks { capture: capture.collect(), ..hooks });
                assert!(left_out.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    #[test]
    fn what_is_replaced_is_not_computed() {
        let model = Model::load("builtin:dense").unwrap();
        let d = model.config.hidden_size;
        let x = Fused.array((0..6 * d).map(|i| (i % 7) as f32 - 3.0).collect(), d).unwrap();
        let mut hooks = Hooks::default();
        for (site, tokens) in [(Site::MlpOut, 1..3), (Site::MlpOut, 5..6), (Site::AttnOut, 0..4)] {
            let change = Change::Affine { scale: 0.0, shift: None };
            hooks.push(0, site, Block { tokens, columns: 0..d, change });
        }
        let pass = Pass::new(&Fused, &model, &hooks);
        let layer = &model.weights.layers[0];
        let (Some(Mlp::Dense(dense)), MixerWeights::Attention(attention)) =
            (&layer.mlp, &layer.mixer)
        else {
            panic!("the dense model has other blocks");
        };
        let zeros = |y: &[f32]| -> Vec<usize> {
            let rows = y.chunks_exact(d).enumerate();
            rows.filter(|(_, row)| row.iter().all(|y| *y == 0.0)).map(|(t, _)| t).collect()
        };
        assert_eq!(zeros(&pass.dense(0, dense, &x, 6).unwrap().data), [1, 2, 5]);
        // The first row is replaced in full, the second in part.
        let rows = [Row::new([1, 2]), Row::new([3, 4, 5, 6])];
        let spans = [0..2, 2..6].map(|tokens| Span { tokens, position: 0 });
        let packed = PackedRows { rows: &rows, spans: &spans };
        let rope = Rope::new(&model.config.rope[0], 6);
        let out = pass.attention_of_live_rows(0, attention, &x, Some(&rope), packed);
        assert_eq!(zeros(&out.unwrap().unwrap().data), [0, 1]);
    }
}
