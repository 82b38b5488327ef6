//! Ordinary counterparts that a matched control puts in the place of an edit's specifics.

use super::component::Component;

/// Draws the ordinary counterparts from which [`Edit::control`](super::Edit::control) builds an
/// edit that differs from another only in *what* is put in.
pub trait StandIns {
    /// Returns an ordinary token for a token.
    fn token(&mut self, id: u32) -> u32;

    /// Returns another position on the same side (prompt or continuation).
    fn position(&mut self, position: usize) -> usize;

    /// Returns another split of a token on the same side into as many pieces, with the token's
    /// position.
    fn split(&mut self, position: usize, pieces: &[u32]) -> (usize, Vec<u32>);

    /// Returns another position for the key of an attention knockout, before its query.
    fn key(&mut self, key: usize) -> usize;

    /// Returns another component of the same kind.
    fn component(&mut self, component: Component) -> Component;

    /// Returns another seed.
    fn seed(&mut self) -> u64;
}
