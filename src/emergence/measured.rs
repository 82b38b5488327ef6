//! Sets of lesions, measured: the values of the model and of the references, and a row for each
//! set.

use serde::Serialize;

use super::explained::mean;
use super::measure::{Scale, TextValues};
use super::regression::ByText;
use super::sets::{Design, PartSet};
use super::surrogate::{Function, Planted};
use crate::edit::Component;

/// Sets of lesions, measured on some texts.
pub struct Measured {
    /// The parts.
    pub components: Vec<Component>,
    /// The sets and their weights.
    pub design: Design,
    /// The planted terms.
    pub planted: Vec<Planted>,
    /// The loss of the unigram model, nats per token.
    pub unigram_loss: f64,
    /// Values of each text.
    pub texts: Vec<TextValues>,
    /// False if it was ended early.
    pub complete: bool,
}

/// One set of lesions, measured.
#[derive(Debug, Clone, Serialize)]
pub struct SetRow {
    /// The lesioned parts; none: the intact model.
    pub set: Vec<Component>,
    /// The weight of the set: its probability in the measure, or how often it was drawn.
    pub weight: f64,
    /// True if the model is worse than a unigram model.
    pub dead: bool,
    /// Loss, nats per token, mean over the texts; `null` where it is infinite.
    pub loss: f64,
    /// The right token's centred logit, nats, mean over the texts.
    pub logit: f64,
    /// Loss of the additive surrogate.
    pub surrogate_loss: f64,
    /// The right token's centred logit in the additive surrogate.
    pub surrogate_logit: f64,
    /// Loss on each text.
    pub losses: Vec<f64>,
}

impl Measured {
    /// Returns a function's values, by text and set.
    pub fn by_text(&self, function: Function, scale: Scale) -> ByText {
        self.texts.iter().map(|text| text.of(function, scale).to_vec()).collect()
    }

    /// Returns a function's values on each set, means over the texts.
    pub fn mean(&self, function: Function, scale: Scale) -> Vec<f64> {
        mean(&self.by_text(function, scale), &vec![1.0; self.texts.len()])
    }

    /// Returns whether each set leaves a function worse than a unigram model.
    pub fn dead(&self, function: Function) -> Vec<bool> {
        let is_dead = |loss: &f64| loss.is_nan() || *loss > self.unigram_loss;
        self.mean(function, Scale::Loss).iter().map(is_dead).collect()
    }

    /// Returns the parts of a set.
    pub fn names(&self, set: &PartSet) -> Vec<Component> {
        set.parts().iter().map(|part| self.components[*part as usize]).collect()
    }

    /// Returns one row for each set.
    pub fn rows(&self) -> Vec<SetRow> {
        let of = |function| Scale::ALL.map(|scale| self.mean(function, scale));
        let ([loss, logit], surrogate) = (of(Function::Model), of(Function::Surrogate));
        let dead = self.dead(Function::Model);
        let row = |(at, set): (usize, &PartSet)| SetRow {
            set: self.names(set),
            weight: self.design.weights[at],
            dead: dead[at],
            loss: loss[at],
            logit: logit[at],
            surrogate_loss: surrogate[0][at],
            surrogate_logit: surrogate[1][at],
            losses: self.texts.iter().map(|t| t.of(Function::Model, Scale::Loss)[at]).collect(),
        };
        self.design.sets.iter().enumerate().map(row).collect()
    }
}
