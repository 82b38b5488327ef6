//! The mixture of experts of a layer (Shazeer et al. 2017), and the routing of tokens to experts.

use super::mlp::Dense;
use super::pass::Pass;
use crate::error::{Error, Result};
use crate::model::arithmetic::kernels;
use crate::model::arithmetic::{Mixture, Numerics};
use crate::model::config::Experts;
use crate::model::hooks::Site;
use crate::model::weights::{Linear, Loader};

/// The weights of a mixture of experts.
pub struct Sparse {
    /// `[num_experts, d_model]`.
    pub router: Linear,
    /// The experts among which the router chooses.
    pub experts: Vec<Dense>,
    /// The expert that all tokens pass through.
    pub shared: Option<Shared>,
}

/// An expert that all tokens pass through.
pub struct Shared {
    /// The expert.
    pub mlp: Dense,
    /// Projection to a gate, `[1, d_model]`, whose sigmoid the output is multiplied by.
    pub gate: Option<Linear>,
}

impl Sparse {
    /// Loads the mixture of the layer at `prefix`.
    pub(super) fn load(loader: &mut Loader, prefix: &str, experts: &Experts) -> Result<Self> {
        let d = loader.config.hidden_size;
        let router =
            loader.linear(format!("{prefix}.{}", loader.names.router), experts.num_experts, d)?;
        let (folder, names) = (format!("{prefix}.{}", loader.names.experts), loader.names.expert);
        let width = experts.moe_intermediate_size;
        let all = (0..experts.num_experts)
            .map(|e| Dense::expert(loader, &format!("{folder}.{e}"), names, width))
            .collect::<Result<_>>()?;
        let shared = match experts.shared_intermediate_size {
            0 => None,
            width => Some(Shared {
                mlp: {
                    let prefix = format!("{prefix}.{}", loader.names.shared);
                    Dense::expert(loader, &prefix, names, width)?
                },
                gate: match experts.shared_gate {
                    true => {
                        Some(loader.linear(format!("{prefix}.mlp.shared_expert_gate"), 1, d)?)
                    }
                    false => None,
                },
            }),
        };
        Ok(Self { router, experts: all, shared })
    }

    /// Returns the number of parameters.
    pub(super) fn parameters(&self) -> usize {
        let shared = self
            .shared
            .as_ref()
            .map_or(0, |s| s.mlp.parameters() + s.gate.as_ref().map_or(0, Linear::parameters));
        self.router.parameters()
            + self.experts.iter().map(Dense::parameters).sum::<usize>()
            + shared
    }

    /// Applies the mixture to its normalised input `x`, `[tokens, d_model]`; returns its output
    /// before the post-norm, in the same shape.
    pub(in crate::model) fn forward<N: Numerics>(
        &self,
        pass: &Pass<N>,
        layer: usize,
        x: &N::Array,
    ) -> Result<N::Array> {
        let (mode, config) = (pass.mode, &pass.model.config);
        let experts =
            config.experts.as_ref().ok_or_else(|| Error::internal("a mixture without experts"))?;
        let logits = pass.at(layer, Site::RouterLogits, mode.linear(x, &self.router)?)?;
        let mut kept = pass.captures(layer, Site::Experts).then(Vec::new);
        // What is captured is wanted of every token.
        let idle = match kept {
            Some(_) => Vec::new(),
            None => pass.hooks.idle(layer, &[Site::MlpOut, Site::ResidPost], config.hidden_size),
        };
        let mixture = Mixture { sparse: self, experts, activation: config.activation, idle: &idle };
        let out =
            mode.mixture(x, &logits, mixture, pass.blocks(layer, Site::Experts), kept.as_mut())?;
        if let Some(kept) = kept {
            pass.keep(layer, Site::Experts, kept);
        }
        Ok(out)
    }
}

/// Returns the tokens that are routed to each expert by router logits `[tokens, num_experts]`, each
/// list ascending.
pub fn tokens_of_experts(logits: &[f32], experts: &Experts) -> Vec<Vec<usize>> {
    let tokens = |routed: Vec<(usize, f32)>| routed.into_iter().map(|(token, _)| token).collect();
    Routing::new(logits, experts).by_expert().into_iter().map(tokens).collect()
}

/// Returns the experts that tokens are routed to by router logits `[tokens, num_experts]`,
/// `[tokens, num_experts_per_tok]`, the one with the largest weight first.
pub fn chosen_experts(logits: &[f32], experts: &Experts) -> Vec<u32> {
    Routing::new(logits, experts).chosen.into_iter().map(|(expert, _)| expert as u32).collect()
}

/// The experts that each token is routed to, and their weights.
pub struct Routing {
    experts: usize,
    /// `[tokens, num_experts_per_tok]`, the most probable first.
    chosen: Vec<(usize, f32)>,
    per_token: usize,
}

impl Routing {
    /// Routes tokens by router logits `[tokens, num_experts]`. A token's experts are those of the
    /// largest probabilities, by a softmax over all experts; where there are groups, only the
    /// groups with the largest maxima take part. Their weights are the probabilities, divided by
    /// their sum if `norm_topk_prob` is set. Ties go to the lower number.
    pub fn new(logits: &[f32], experts: &Experts) -> Self {
        let per_token = experts.num_experts_per_tok;
        let mut chosen = Vec::with_capacity(logits.len() / experts.num_experts * per_token);
        for logits in logits.chunks_exact(experts.num_experts) {
            let max = kernels::largest(logits);
            let sum: f32 = logits.iter().map(|l| kernels::exp(l - max)).sum();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            if let Some((groups, allowed)) = experts.groups {
                let size = logits.len() / groups;
                let best = |group: usize| kernels::largest(&logits[group * size..][..size]);
                let mut ranked: Vec<usize> = (0..groups).collect();
                ranked.sort_by(|a, b| best(*b).total_cmp(&best(*a)).then(a.cmp(b)));
                order.retain(|e| ranked[..allowed].contains(&(e / size)));
            }
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            order.truncate(per_token);
            let probability = |e: usize| kernels::exp(logits[e] - max) / sum;
            let kept: f32 = if experts.norm_topk_prob {
                order.iter().map(|e| probability(*e)).sum()
            } else {
                1.0
            };
            let scale = experts.routed_scaling_factor as f32;
            chosen.extend(order.into_iter().map(|e| (e, probability(e) / kept * scale)));
        }
        Self { experts: experts.num_experts, chosen, per_token }
    }

    /// Returns the tokens of each expert with their weights, ascending by token.
    pub fn by_expert(&self) -> Vec<Vec<(usize, f32)>> {
        let mut tokens = vec![Vec::new(); self.experts];
        for (token, chosen) in self.chosen.chunks_exact(self.per_token).enumerate() {
            chosen.iter().for_each(|(expert, weight)| tokens[*expert].push((token, *weight)));
        }
        tokens
    }
}
