//! One mutation, and everything that is specific to a kind of it short of a model: what it acts at,
//! what it names, its check, its matched control, its words.

use serde::{Deserialize, Serialize};

use super::action::Action;
use super::check::{Fault, fault};
use super::component::Component;
use super::embedding::EmbeddingChange;
use super::knockout::AttentionKnockout;
use super::phrase::Phrase;
use super::stand_in::StandIns;
use super::steering::Steering;
use super::words::{Lookup, Words, cut, parse};

/// The words that edits begin with, for error messages.
const VERBS: &str = "replace, insert, delete, retokenize, zero, mean, resample, flip, scale, \
    noise, mask, force, promote, embedding, add, remove, clamp, knockout, carry or freeze-routing";

/// Largest number of pieces of a token; few tokens are longer than this.
pub(super) const MAX_PIECES: usize = 64;

/// One mutation. Positions count tokens of the *unedited* sequence (base then continuation), so the
/// members of a set of edits can be removed one by one without renumbering the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "snake_case", deny_unknown_fields)]
pub enum Edit {
    /// Put `id` where the token at `position` was.
    Replace {
        /// Position of the token.
        position: usize,
        /// Id of the new token.
        id: u32,
    },
    /// Put `id` before the token at `position` (`position` = length: at the end). Several inserts
    /// at one position keep their order in the list.
    Insert {
        /// Position of the token that follows.
        position: usize,
        /// Id of the new token.
        id: u32,
    },
    /// Remove the token at `position`.
    Delete {
        /// Position of the token.
        position: usize,
    },
    /// Write the text of the token at `position` as other tokens, whose texts put together are the
    /// token's: what a person reads stays the same (Geh et al., "Adversarial Tokenization", 2025).
    Retokenize {
        /// Position of the token.
        position: usize,
        /// Ids of the tokens in its place, two or more.
        pieces: Vec<u32>,
    },
    /// Change the embedding of the token at `position`.
    Embedding {
        /// Position of the token.
        position: usize,
        /// The change of its embedding.
        change: EmbeddingChange,
    },
    /// Lesion (ablate, scale or disturb) the output of a component: at every position of the row,
    /// or at one. A recurrent state changes after the position, before the next token meets it.
    Lesion {
        /// The component whose output changes.
        component: Component,
        /// The change.
        action: Action,
        /// The only position it acts at; `None`: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position: Option<usize>,
    },
    /// Change the residual stream along a direction: at every position of the row, or at one.
    Steering {
        /// The place, the direction and the change.
        steering: Steering,
        /// The only position it acts at; `None`: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position: Option<usize>,
    },
    /// Cut attention edges: queries no longer attend to a key.
    AttentionKnockout(AttentionKnockout),
    /// Put the recurrent state that reading `from` leaves in the place of the one after `position`.
    CarryState {
        /// The state, or part of one.
        component: Component,
        /// Position after which the state is replaced.
        position: usize,
        /// Ids that the new state has read.
        from: Vec<u32>,
    },
    /// Route every token as without the other edits: their effects through values remain, those
    /// through the choice of experts are removed.
    FreezeRouting,
}

impl Edit {
    /// Returns a lesion at every position.
    pub fn lesion(component: Component, action: Action) -> Self {
        Self::Lesion { component, action, position: None }
    }

    /// Returns true if the edit changes token ids (and not activations or weights).
    pub fn is_token_edit(&self) -> bool {
        match self {
            Self::Replace { .. }
            | Self::Insert { .. }
            | Self::Delete { .. }
            | Self::Retokenize { .. } => true,
            Self::Embedding { .. }
            | Self::Lesion { .. }
            | Self::Steering { .. }
            | Self::AttentionKnockout(_)
            | Self::CarryState { .. }
            | Self::FreezeRouting => false,
        }
    }

    /// Returns true if the edit changes the text that a person reads.
    pub fn changes_text(&self) -> bool {
        self.is_token_edit() && !matches!(self, Self::Retokenize { .. })
    }

    /// Returns true if its matched controls act at other positions: on other tokens that are there
    /// already, since it puts in nothing that another token could stand in for.
    pub fn has_controls_elsewhere(&self) -> bool {
        matches!(self, Self::Delete { .. } | Self::Retokenize { .. })
    }

    /// Returns true if the tokens after the edit move.
    pub fn moves_tokens(&self) -> bool {
        matches!(self, Self::Insert { .. } | Self::Delete { .. } | Self::Retokenize { .. })
    }

    /// Returns how many tokens the edit adds to the sequence.
    pub fn added_tokens(&self) -> usize {
        match self {
            Self::Insert { .. } => 1,
            Self::Retokenize { pieces, .. } => pieces.len().saturating_sub(1),
            _ => 0,
        }
    }

    /// Returns true if the edit changes the embedding of the token at its position, and with it
    /// everything that is computed from there on.
    pub fn changes_embedding(&self) -> bool {
        match self {
            Self::Embedding { .. } => true,
            Self::Replace { .. }
            | Self::Insert { .. }
            | Self::Delete { .. }
            | Self::Retokenize { .. }
            | Self::Lesion { .. }
            | Self::Steering { .. }
            | Self::AttentionKnockout(_)
            | Self::CarryState { .. }
            | Self::FreezeRouting => false,
        }
    }

    /// Returns the position it acts at, for edits that act at one.
    pub fn position(&self) -> Option<usize> {
        match *self {
            Self::Replace { position, .. }
            | Self::Insert { position, .. }
            | Self::Delete { position }
            | Self::Retokenize { position, .. }
            | Self::Embedding { position, .. }
            | Self::CarryState { position, .. } => Some(position),
            Self::Lesion { position, .. }
            | Self::Steering { position, .. }
            | Self::AttentionKnockout(AttentionKnockout { position, .. }) => position,
            Self::FreezeRouting => None,
        }
    }

    /// Returns every position that it names: the one it acts at, and that of a key.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        let key = match self {
            Self::AttentionKnockout(knockout) => Some(knockout.key),
            _ => None,
        };
        self.position().into_iter().chain(key)
    }

    /// Returns the [`positions`](Self::positions), to be changed.
    pub fn positions_mut(&mut self) -> impl Iterator<Item = &mut usize> {
        let (position, key) = match self {
            Self::Replace { position, .. }
            | Self::Insert { position, .. }
            | Self::Delete { position }
            | Self::Retokenize { position, .. }
            | Self::Embedding { position, .. }
            | Self::CarryState { position, .. } => (Some(position), None),
            Self::Lesion { position, .. } | Self::Steering { position, .. } => {
                (position.as_mut(), None)
            }
            Self::AttentionKnockout(knockout) => {
                (knockout.position.as_mut(), Some(&mut knockout.key))
            }
            Self::FreezeRouting => (None, None),
        };
        position.into_iter().chain(key)
    }

    /// Returns the first position that it changes anything at; 0 for edits that act everywhere.
    pub fn first_changed(&self) -> usize {
        match self {
            Self::AttentionKnockout(knockout) => knockout.first_query(),
            _ => self.position().unwrap_or(0),
        }
    }

    /// Returns the length of the shortest sequence that has every position the edit names.
    pub fn least_length(&self) -> usize {
        let after = usize::from(!matches!(self, Self::Insert { .. }));
        self.positions().max().map_or(0, |last| last + after)
    }

    /// Returns the continuous strength, for edits that have one; the reduction makes it smaller.
    pub fn strength(&self) -> Option<f32> {
        match self {
            Self::Embedding { change, .. } => Some(change.strength()),
            Self::Lesion { action, .. } => action.strength(),
            Self::Steering { steering, .. } => steering.strength(),
            _ => None,
        }
    }

    /// Returns the same edit at another strength; edits without one are returned unchanged.
    pub fn with_strength(&self, strength: f32) -> Self {
        let mut edit = self.clone();
        match &mut edit {
            Self::Embedding { change, .. } => change.set_strength(strength),
            Self::Lesion { action, .. } => action.set_strength(strength),
            Self::Steering { steering, .. } => steering.set_strength(strength),
            _ => {}
        }
        edit
    }

    /// Returns the token ids that the edit names, which a model must know.
    pub fn token_ids(&self) -> Vec<u32> {
        match self {
            Self::Replace { id, .. } | Self::Insert { id, .. } => vec![*id],
            Self::Embedding { change, .. } => change.token_ids(),
            Self::Retokenize { pieces: ids, .. } | Self::CarryState { from: ids, .. } => {
                ids.clone()
            }
            Self::Delete { .. }
            | Self::Lesion { .. }
            | Self::Steering { .. }
            | Self::AttentionKnockout(_)
            | Self::FreezeRouting => Vec::new(),
        }
    }

    /// Returns the component that the edit names, which a model must have.
    pub fn component(&self) -> Option<&Component> {
        match self {
            Self::Lesion { component, .. }
            | Self::AttentionKnockout(AttentionKnockout { component, .. })
            | Self::CarryState { component, .. } => Some(component),
            _ => None,
        }
    }

    /// Returns the component that a lesion or an attention knockout acts on.
    pub fn lesioned(&self) -> Option<&Component> {
        match self {
            Self::CarryState { .. } => None,
            _ => self.component(),
        }
    }

    /// Checks what can be checked without a model, for a sequence of `total` tokens; a list of ids
    /// or values may have `max_ids`.
    ///
    /// # Errors
    /// The field that breaks a rule, and which rule.
    pub fn check(&self, total: usize, max_ids: usize) -> Result<(), Fault> {
        let end = total + usize::from(matches!(self, Self::Insert { .. }));
        if let Some(position) = self.position().filter(|position| *position >= end) {
            return fault(
                "position",
                format!("{position}, but prompt and continuation are {total} tokens"),
            );
        }
        match self {
            Self::Embedding { change, .. } => change.check(),
            Self::Lesion { component, action, .. } => action.check(component),
            Self::Steering { steering, .. } => steering.check(max_ids),
            Self::AttentionKnockout(knockout) => knockout.check(total),
            Self::CarryState { component, from, .. } => match component {
                Component::State { .. } if from.is_empty() => {
                    fault("from", "empty; a state comes from at least one token")
                }
                Component::State { .. } if from.len() > max_ids => {
                    fault("from", format!("{} entries, at most {max_ids} are read", from.len()))
                }
                Component::State { .. } => Ok(()),
                _ => fault("component", format!("{component} is no state to carry over")),
            },
            Self::Retokenize { pieces, .. } => match pieces.len() {
                0 | 1 => fault("pieces", "fewer than two; a token is split into two or more"),
                2..=MAX_PIECES => Ok(()),
                n => fault("pieces", format!("{n} entries, at most {MAX_PIECES} are read")),
            },
            Self::Replace { .. }
            | Self::Insert { .. }
            | Self::Delete { .. }
            | Self::FreezeRouting => Ok(()),
        }
    }

    /// Returns true if the edit takes the place of an `older` one when both are made: two changes
    /// of the same token, or of the same component at the same positions.
    pub fn supersedes(&self, older: &Self) -> bool {
        let changes_token = |edit: &Self| {
            edit.changes_embedding() || edit.is_token_edit() && !matches!(edit, Self::Insert { .. })
        };
        let same_kind = std::mem::discriminant(self) == std::mem::discriminant(older);
        let same_component = self.component().is_some() && self.component() == older.component();
        (same_kind && same_component || changes_token(self) && changes_token(older))
            && self.positions().eq(older.positions())
    }

    /// Returns the matched control: the same edit with ordinary counterparts of what it puts in.
    pub fn control(&self, stand_ins: &mut dyn StandIns) -> Self {
        match *self {
            Self::Replace { position, id } => Self::Replace { position, id: stand_ins.token(id) },
            Self::Insert { position, id } => Self::Insert { position, id: stand_ins.token(id) },
            Self::Delete { position } => Self::Delete { position: stand_ins.position(position) },
            Self::Retokenize { position, ref pieces } => {
                let (position, pieces) = stand_ins.split(position, pieces);
                Self::Retokenize { position, pieces }
            }
            Self::Embedding { position, change } => {
                Self::Embedding { position, change: change.control(stand_ins) }
            }
            Self::Lesion { component, action, position } => {
                Self::Lesion { component: stand_ins.component(component), action, position }
            }
            Self::Steering { ref steering, position } => {
                Self::Steering { steering: steering.control(stand_ins), position }
            }
            Self::AttentionKnockout(ref knockout) => {
                Self::AttentionKnockout(knockout.control(stand_ins))
            }
            // The state that as many ordinary tokens leave.
            Self::CarryState { component, position, ref from } => {
                let from = from.iter().map(|id| stand_ins.token(*id)).collect();
                Self::CarryState { component, position, from }
            }
            Self::FreezeRouting => Self::FreezeRouting,
        }
    }

    /// Returns what the edit does, without where and how much: two edits with the same signature
    /// show the same glitch. `token_at` gives the unedited token at a position.
    pub fn signature(&self, token_at: &dyn Fn(usize) -> Option<u32>) -> String {
        match self {
            Self::Replace { id, .. } | Self::Insert { id, .. } => format!("token {id}"),
            Self::Delete { position } => format!("delete {:?}", token_at(*position)),
            Self::Retokenize { position, pieces } => {
                format!("retokenize {:?} as {pieces:?}", token_at(*position))
            }
            Self::Embedding { position, change } => change.signature(token_at(*position)),
            Self::Lesion { component, action, .. } => format!("{} {component}", action.name()),
            Self::Steering { steering, .. } => steering.signature(),
            Self::AttentionKnockout(knockout) => format!("knockout {}", knockout.component),
            Self::CarryState { component, .. } => format!("carry {component}"),
            Self::FreezeRouting => "freeze routing".to_owned(),
        }
    }

    /// Reads an edit as a person writes it, such as `replace 4 ' garden'` or `zero L3.head1 at 2`;
    /// `lookup` finds the ids of quoted texts and reads files.
    ///
    /// # Errors
    /// A message that repeats the edit and says what was expected.
    pub fn parse(text: &str, lookup: &dyn Lookup) -> Result<Self, String> {
        parse(text, lookup, Self::read)
    }

    fn read(words: &mut Words) -> Result<Self, String> {
        match words.word(VERBS)? {
            "replace" => Ok(Self::Replace { position: words.position()?, id: words.token()? }),
            "insert" => Ok(Self::Insert { position: words.position()?, id: words.token()? }),
            "delete" => Ok(Self::Delete { position: words.position()? }),
            "retokenize" => {
                Ok(Self::Retokenize { position: words.position()?, pieces: words.tokens()? })
            }
            "embedding" => Ok(Self::Embedding {
                position: words.position()?,
                change: EmbeddingChange::read(words)?,
            }),
            "knockout" => AttentionKnockout::read(words).map(Self::AttentionKnockout),
            "carry" => {
                let component = words.component()?;
                if !matches!(component, Component::State { .. }) {
                    let example = "such as L3.state or L3.state5";
                    return Err(format!("{component} is no recurrent state, {example}"));
                }
                words.expect("at")?;
                let position = words.position()?;
                words.expect("from")?;
                Ok(Self::CarryState { component, position, from: words.tokens()? })
            }
            "freeze-routing" => Ok(Self::FreezeRouting),
            verb => {
                if let Some((steering, position)) = Steering::read(verb, words)? {
                    return Ok(Self::Steering { steering, position });
                }
                match Action::read(verb, words)? {
                    Some((action, component, position)) => {
                        Ok(Self::Lesion { component, action, position })
                    }
                    None => Err(format!("`{}` is no edit; expected {VERBS}", cut(verb))),
                }
            }
        }
    }

    /// Returns the edit as [`parse`](Self::parse) reads it, with ids for tokens.
    pub fn to_text(&self) -> String {
        match self {
            Self::Replace { position, id } => format!("replace {position} {id}"),
            Self::Insert { position, id } => format!("insert {position} {id}"),
            Self::Delete { position } => format!("delete {position}"),
            Self::Retokenize { position, pieces } => {
                format!("retokenize {position} {}", joined(pieces, " ", &|id| id.to_string()))
            }
            Self::Embedding { position, change } => {
                format!("embedding {position} {}", change.to_text())
            }
            Self::Lesion { component, action, position } => action.to_text(component, *position),
            Self::Steering { steering, position } => steering.to_text(*position),
            Self::AttentionKnockout(knockout) => knockout.to_text(),
            Self::CarryState { component, position, from } => {
                let from = joined(from, " ", &|id| id.to_string());
                format!("carry {component} at {position} from {from}")
            }
            Self::FreezeRouting => "freeze-routing".to_owned(),
        }
    }

    /// Returns the edit in words: "replace the token at 5 by id 4091". `token` names a token.
    pub fn phrase(&self, token: &dyn Fn(u32) -> String) -> Phrase {
        match self {
            Self::Replace { position, id } => Phrase::new(
                "replace",
                "replacing",
                format!("the token at {position} by {}", token(*id)),
            ),
            Self::Insert { position, id } => Phrase::new(
                "insert",
                "inserting",
                format!("{} before the token at {position}", token(*id)),
            ),
            Self::Delete { position } => {
                Phrase::new("delete", "deleting", format!("the token at {position}"))
            }
            Self::Retokenize { position, pieces } => Phrase::new(
                "retokenize",
                "retokenizing",
                format!("the token at {position} as {}", joined(pieces, " + ", token)),
            ),
            Self::Embedding { position, change } => change.phrase(*position, token),
            Self::Lesion { component, action, position } => action.phrase(component).at(*position),
            Self::Steering { steering, position } => steering.phrase().at(*position),
            Self::AttentionKnockout(knockout) => knockout.phrase(),
            Self::CarryState { component, position, from } => {
                let from = joined(from, ", ", token);
                Phrase::new(
                    "replace",
                    "replacing",
                    format!("{component} at {position} by its state after reading {from}"),
                )
            }
            Self::FreezeRouting => {
                Phrase::new("route", "routing", "every token as without the other edits".into())
            }
        }
    }

    /// Returns the edit in a few words, for titles. `token` quotes a token, `at` the unedited token
    /// at a position.
    pub fn title(&self, token: &dyn Fn(u32) -> String, at: &dyn Fn(usize) -> String) -> String {
        let place = |position: &Option<usize>| {
            position.map_or(String::new(), |position| format!(" at {}", at(position)))
        };
        match self {
            Self::Replace { position, id } => format!("{} for {}", token(*id), at(*position)),
            Self::Insert { position, id } => format!("{} before {}", token(*id), at(*position)),
            Self::Delete { position } => format!("deleting {}", at(*position)),
            Self::Retokenize { position, pieces } => {
                format!("{} for {}", joined(pieces, " + ", token), at(*position))
            }
            Self::Embedding { position, change } => {
                format!("moving the embedding of {} by {:.2}", at(*position), change.strength())
            }
            Self::Lesion { component, action, position } => {
                action.title(component) + &place(position)
            }
            Self::Steering { steering, position } => steering.title() + &place(position),
            Self::AttentionKnockout(knockout) => knockout.title(at) + &place(&knockout.position),
            Self::CarryState { component, position, from } => format!(
                "carrying {component} over from {} other tokens at {}",
                from.len(),
                at(*position)
            ),
            Self::FreezeRouting => "with routing frozen".to_owned(),
        }
    }
}

/// Returns tokens, each as `name` has it, with `between` between them.
fn joined(ids: &[u32], between: &str, name: &dyn Fn(u32) -> String) -> String {
    ids.iter().map(|id| name(*id)).collect::<Vec<_>>().join(between)
}
