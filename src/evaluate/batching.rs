//! Cuts rows into forwards of bounded size.

/// Tokens of one forward: enough for full speed, few enough that its buffers stay small (a layer of
/// SmolLM2 holds some 20 kB a token).
const TOKENS_PER_FORWARD: usize = 2048;

/// The largest number of values that the patches of one call to the evaluator should have (256 MB):
/// they are all made before it.
pub const PATCH_VALUES: usize = 64 << 20;

/// Rows in their order, cut into forwards: each of as many as have room, or of one that is longer.
pub fn forwards<T>(
    rows: impl IntoIterator<Item = T>,
    tokens: impl Fn(&T) -> usize,
) -> impl Iterator<Item = Vec<T>> {
    cut(rows, tokens, TOKENS_PER_FORWARD)
}

/// Items in their order, cut into parts whose sizes sum up to `limit` at most, or of one that is
/// larger.
pub fn cut<T>(
    items: impl IntoIterator<Item = T>,
    size: impl Fn(&T) -> usize,
    limit: usize,
) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(move || {
        let (mut part, mut sum) = (Vec::new(), 0);
        while let Some(item) = items.next_if(|item| sum == 0 || sum + size(item) <= limit) {
            sum += size(&item);
            part.push(item);
        }
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_take_what_has_room_and_lose_nothing() {
        let check = |rows: &[usize], expect: &[&[usize]]| {
            assert_eq!(forwards(rows.to_vec(), |n| *n).collect::<Vec<_>>(), expect);
        };
        check(&[], &[]);
        check(&[2048, 1], &[&[2048], &[1]]);
        check(&[2047, 1, 1], &[&[2047, 1], &[1]]);
        check(&[1, 5000, 0, 2], &[&[1], &[5000], &[0, 2]]);
    }
}
