//! Attention knockout (Geva et al. 2023, "Dissecting Recall of Factual Associations in
//! Auto-Regressive Language Models", section 4): the score of a query for a key becomes minus
//! infinity before the softmax, so that no information moves from that key to that query.

use serde::{Deserialize, Serialize};

use super::check::{Fault, fault};
use super::component::Component;
use super::phrase::Phrase;
use super::stand_in::StandIns;
use super::words::Words;

/// Edges of the attention of one head, or of all heads of a block, that are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionKnockout {
    /// The head, or the whole attention block.
    pub component: Component,
    /// The only position whose query no longer attends to the key; `None`: every one after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// The position that is no longer attended to. It is before that of the query, so that a query
    /// always has itself left.
    pub key: usize,
}

impl AttentionKnockout {
    /// Returns the first position whose query no longer attends to the key.
    pub fn first_query(&self) -> usize {
        self.position.unwrap_or(self.key.saturating_add(1))
    }

    /// Reads what follows `knockout`.
    pub(super) fn read(words: &mut Words) -> Result<Self, String> {
        let component = words.component()?;
        if !has_edges(&component) {
            return Err(no_attention(&component));
        }
        words.expect("to")?;
        Ok(Self { component, key: words.position()?, position: words.place()? })
    }

    /// Returns the edit as [`read`](Self::read) reads it, with its verb.
    pub(super) fn to_text(self) -> String {
        let place = self.position.map_or(String::new(), |position| format!(" at {position}"));
        format!("knockout {} to {}{place}", self.component, self.key)
    }

    /// Checks what can be checked without a model, for a sequence of `total` tokens.
    pub(super) fn check(&self, total: usize) -> Result<(), Fault> {
        if !has_edges(&self.component) {
            return fault("component", no_attention(&self.component));
        }
        if self.key >= total {
            return fault("key", format!("{}, but there are only {total} tokens", self.key));
        }
        match self.position {
            Some(query) if self.key >= query => {
                fault("key", format!("{} is not before the query at {query}", self.key))
            }
            None if self.key + 1 == total => {
                fault("key", format!("{} is the last token, to which no other attends", self.key))
            }
            _ => Ok(()),
        }
    }

    /// Returns the knockout of another key in another component: of its only query, or of all after
    /// it.
    pub(super) fn control(&self, stand_ins: &mut dyn StandIns) -> Self {
        Self {
            component: stand_ins.component(self.component),
            key: stand_ins.key(self.key),
            ..*self
        }
    }

    /// Returns the edit in words.
    pub(super) fn phrase(&self) -> Phrase {
        let object = format!("{} from attending to the token at {}", self.component, self.key);
        Phrase::new("keep", "keeping", object).at(self.position)
    }

    /// Returns the edit in a few words, for titles, without its query; `at` quotes the unedited
    /// token at a position.
    pub(super) fn title(&self, at: &dyn Fn(usize) -> String) -> String {
        format!("keeping {} from attending to {}", self.component, at(self.key))
    }
}

/// Returns whether a component can have attention edges: what it is in a model, that model knows.
fn has_edges(component: &Component) -> bool {
    matches!(component, Component::Head { .. } | Component::Attention { .. })
}

fn no_attention(component: &Component) -> String {
    format!("{component} is no attention head or block, such as L3.head1 or L3.attn")
}
