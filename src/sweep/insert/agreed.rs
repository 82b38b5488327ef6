//! The text that continuations of different prompts have in common.

/// A text with the number of continuations that begin with it, token by token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Agreed {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The number of continuations that say everything up to and including each token.
    pub followers: Vec<usize>,
    /// The sum over the tokens of their surprise, each times the share of the continuations that
    /// say everything up to it, nats.
    pub score: f64,
}

impl Agreed {
    /// Returns the text with which at least two of the continuations begin that has the largest
    /// score; of equals, the one that the earliest continuation begins with. `surprise` is that of
    /// the token at an index of a continuation, nats.
    pub fn of(continuations: &[Vec<u32>], surprise: impl Fn(&[u32], usize) -> f64) -> Self {
        let mut best = Self::default();
        for said in continuations {
            let mut agreed = Self::default();
            for at in 0..said.len() {
                let followers =
                    continuations.iter().filter(|c| c.starts_with(&said[..=at])).count();
                if followers < 2 {
                    break;
                }
                agreed.ids.push(said[at]);
                agreed.followers.push(followers);
                let share = followers as f64 / continuations.len() as f64;
                agreed.score += share * surprise(said, at);
            }
            if agreed.score > best.score {
                best = agreed;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(continuations: &[&[u32]]) -> (Vec<u32>, Vec<usize>, f64) {
        let continuations: Vec<Vec<u32>> = continuations.iter().map(|c| c.to_vec()).collect();
        let agreed = Agreed::of(&continuations, |said, at| f64::from(said[at]));
        (agreed.ids, agreed.followers, agreed.score)
    }

    #[test]
    fn agreed_by_hand() {
        assert_eq!(of(&[&[1, 2, 3], &[1, 2, 4], &[5, 2], &[6]]), (vec![1, 2], vec![2, 2], 1.5));
        // More begin with 1, but what two begin with is more of a surprise.
        assert_eq!(of(&[&[1], &[1], &[1], &[9, 9], &[9, 9]]).0, [9, 9]);
        // Those that left are not counted, even where they say the same again.
        assert_eq!(of(&[&[4, 2], &[4, 2], &[4, 3, 2]]), (vec![4, 2], vec![3, 2], 4.0 + 4.0 / 3.0));
        assert_eq!(of(&[&[1], &[2]]), (vec![], vec![], 0.0));
        assert_eq!(of(&[]), (vec![], vec![], 0.0));
    }
}
