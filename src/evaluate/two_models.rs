//! Two models of one vocabulary, side by side on the same trials: what one answers, and how far the
//! other disagrees.

use super::{Evaluator, ModelEvaluator, Observation, Request};
use crate::error::{Error, Result};
use crate::model::Model;

/// Answers requests with a model, in their order.
type Observe<'a> = &'a dyn Fn(&ModelEvaluator, &[Request]) -> Result<Vec<Observation>>;

/// Answers as one model does; where a request compares, the other is run on the same trial.
pub struct TwoModels<'a, 'm> {
    /// The model under test.
    pub evaluator: &'a ModelEvaluator<'m>,
    /// The other one.
    pub against: &'a ModelEvaluator<'m>,
}

impl<'a, 'm> TwoModels<'a, 'm> {
    /// Puts two models beside each other.
    ///
    /// # Errors
    /// [`Error::Request`] if a token id does not mean the same to both.
    pub fn new(evaluator: &'a ModelEvaluator<'m>, against: &'a ModelEvaluator<'m>) -> Result<Self> {
        same_vocabulary(evaluator.model, against.model)?;
        Ok(Self { evaluator, against })
    }

    /// Returns true if both have the same components of the same widths, so that outputs of one fit
    /// into the other.
    pub fn are_alike(&self) -> bool {
        let (a, b) = (&self.evaluator.model.config, &self.against.model.config);
        a.num_hidden_layers == b.num_hidden_layers
            && a.hidden_size == b.hidden_size
            && a.residual == b.residual
            && (0..a.num_hidden_layers).all(|layer| {
                a.mixer(layer) == b.mixer(layer)
                    && a.mlp(layer) == b.mlp(layer)
                    && a.heads(layer) == b.heads(layer)
                    && a.z_width(layer) == b.z_width(layer)
            })
    }

    /// Measures with `observe`, which answers requests of either model in their order.
    fn compared(&self, requests: &[Request], observe: Observe) -> Result<Vec<Observation>> {
        let compared: Vec<usize> = (0..requests.len()).filter(|i| requests[*i].compare).collect();
        let theirs: Vec<Request> = (compared.iter())
            .map(|i| Request::new(requests[*i].trial.clone()).keeping_distributions())
            .collect();
        let theirs = observe(self.against, &theirs)?;
        // A request with a reference of its own is run a second time.
        let (mut ours, mut again) = (requests.to_vec(), Vec::new());
        for (&i, theirs) in compared.iter().zip(theirs) {
            match &ours[i].reference {
                None => ours[i].reference = theirs.distributions,
                Some(_) => {
                    again.push((i, Request { reference: theirs.distributions, ..ours[i].clone() }))
                }
            }
        }
        let mut observations = observe(self.evaluator, &ours)?;
        for i in compared {
            if requests[i].reference.is_none() {
                let bits = std::mem::take(&mut observations[i].divergence_bits);
                observations[i].disagreement_bits = bits;
            }
        }
        let (indices, again): (Vec<usize>, Vec<Request>) = again.into_iter().unzip();
        for (i, ours) in indices.into_iter().zip(observe(self.evaluator, &again)?) {
            observations[i].disagreement_bits = ours.divergence_bits;
        }
        Ok(observations)
    }
}

/// Requests of one call of [`TwoModels`]: each keeps the other model's distributions.
const CHUNK: usize = 256;

impl Evaluator for TwoModels<'_, '_> {
    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
        let mut all = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(CHUNK) {
            all.extend(self.compared(chunk, &|evaluator, requests| evaluator.observe(requests))?);
        }
        Ok(all)
    }

    fn observe_alone(&self, request: &Request) -> Result<Observation> {
        let alone = |evaluator: &ModelEvaluator, requests: &[Request]| {
            requests.iter().map(|request| evaluator.observe_alone(request)).collect()
        };
        let mut answers = self.compared(std::slice::from_ref(request), &alone)?;
        answers.pop().ok_or_else(|| Error::internal("a request was not answered"))
    }
}

/// Checks that a token id means the same to two models.
fn same_vocabulary(a: &Model, b: &Model) -> Result<()> {
    let differ = |what: String| {
        let names = format!("{} and {} cannot be compared", a.name, b.name);
        Err(Error::request(format!("{names}: {what}")))
    };
    let (sizes, size) = ((a.config.vocab_size, b.config.vocab_size), a.config.vocab_size);
    if sizes.0 != sizes.1 {
        return differ(format!("their vocabularies have {} and {} tokens", sizes.0, sizes.1));
    }
    if a.tokenizer.is_some() != b.tokenizer.is_some() {
        return Ok(());
    }
    match (0..size as u32).find(|id| a.token(*id) != b.token(*id)) {
        Some(id) => differ(format!(
            "token {id} is `{}` to one and `{}` to the other",
            crate::text::escape(&a.token(id)),
            crate::text::escape(&b.token(id))
        )),
        None => Ok(()),
    }
}
