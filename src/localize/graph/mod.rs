//! The graph of a case: a few components at single positions that make its symptom when everything
//! else is as in its controls, and the paths between them.
//!
//! Nodes are ranked by attribution patching with integrated gradients and kept or dropped by what
//! patching shows (`search.rs`). The *faithfulness* of a graph is the share of the effect that is
//! left when every component at every position off the graph has the output it has in the
//! background (Hanna, Pezzelle and Belinkov 2024, "Have Faith in Faithfulness"); random graphs of
//! its size say how much any has. An edge is what a node passes to another one directly, by path
//! patching (`paths.rs`; Wang et al. 2023, "Interpretability in the Wild", section 3.1).
//!
//! The background is the mean over controls, the same edits with other content, which do not have
//! the symptom. Where there are none, or all of them have it, it is the clean run.

mod background;
mod find;
mod paths;
mod search;

pub use background::Background;
pub use find::graph;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::edit::Component;

/// The largest number of nodes of a graph.
pub const MAX_NODES: usize = 12;

/// The faithfulness that a graph should have.
pub const GOAL: f64 = 0.8;

/// The source of the outputs of places off the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// Controls: the same edits with ordinary content.
    Controls,
    /// The run without the edits.
    Clean,
}

/// A component at a position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The component: a head, a mixer (where there are no heads, or too many for a small graph), or
    /// an MLP.
    pub component: Component,
    /// The name of its hook point in TransformerLens, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Position in the edited sequence (prompt and continuation).
    pub position: usize,
    /// The token at `position`.
    pub id: u32,
    /// That token, decoded: a comment.
    pub text: String,
    /// Share of the effect that is removed when it alone has the background's output.
    pub necessity: f64,
    /// Share of the effect that it passes to the logits directly where the graph is alone; the rest
    /// of what it does goes through other nodes.
    pub direct: f64,
}

/// A direct connection between two nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Index of the node that it comes from; `None`: from the edits themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<usize>,
    /// Index of the node that it goes to.
    pub to: usize,
    /// Share of the effect that is removed when the node at `to` gets the background's value of
    /// this input alone, where the graph is alone.
    pub effect: f64,
}

/// The graph of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    /// By how much the symptom's log-probability exceeds that in the background, nats; negative
    /// where the edits make the model no longer say it.
    pub effect: f64,
    /// The source of the outputs of places off the graph.
    pub baseline: Baseline,
    /// The nodes, in the order in which they are computed.
    pub nodes: Vec<Node>,
    /// The edges of some effect, strongest first.
    pub edges: Vec<Edge>,
    /// Share of the effect that the graph makes alone. It can exceed 1 where what is off the graph
    /// works against the symptom.
    pub faithfulness: f64,
    /// The faithfulness of random graphs with as many nodes of the same kinds, ascending.
    pub random: Vec<f64>,
}

impl Graph {
    /// Returns true if the graph has the faithfulness it should have, and more than nine of ten
    /// random ones.
    pub fn is_faithful(&self) -> bool {
        let exceeded = self.random.iter().filter(|random| **random < self.faithfulness).count();
        self.reaches_goal() && 10 * exceeded >= 9 * self.random.len()
    }

    /// Returns true if the graph has the faithfulness it should have, whatever random ones have.
    pub fn reaches_goal(&self) -> bool {
        self.faithfulness >= GOAL
    }
}

/// A component at a position, as a place in the search.
pub type Place = (Component, usize);

/// A set of places: a graph in the making.
pub type Places = BTreeSet<Place>;
