//! P- and q-values of insertions: each against the tail of the values of other single tokens.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng as _;

use crate::rng;
use crate::stats::{self, Tail};
use crate::vocabulary::TokenForm;

/// The share of the insertions of each form, best first, that is measured in other prompts. It is
/// more than what the tail of their values begins at.
const MEASURED: f64 = 0.25;

/// Returns the indices of the insertions that are measured in other prompts, given the forms of all
/// of them, best first: the first quarter of each form.
pub fn first_of_each_form(forms: &[TokenForm]) -> Vec<usize> {
    let mut left: BTreeMap<TokenForm, usize> = BTreeMap::new();
    forms.iter().for_each(|form| *left.entry(*form).or_default() += 1);
    left.values_mut().for_each(|count| *count = (*count as f64 * MEASURED).ceil() as usize);
    let mut has_room = |at: &usize| {
        let left = left.entry(forms[*at]).or_default();
        let has_room = *left > 0;
        *left -= usize::from(has_room);
        has_room
    };
    (0..forms.len()).filter(&mut has_room).collect()
}

/// An insertion with what was measured on it.
pub struct Measured<'a> {
    /// The inserted tokens.
    pub ids: &'a [u32],
    /// The form of the last of them.
    pub form: TokenForm,
    /// The value; `None` if it is known to be below the tail.
    pub value: Option<f64>,
}

/// Returns p- and q-value of each insertion: its place in the tail of the values of those single
/// tokens of its form that are in the other half of the vocabulary, of all forms where a form has
/// too few; corrected for their number. `None` where no tail can be fitted.
pub fn tested(all: &[Measured], seed: u64) -> Vec<Option<(f64, f64)>> {
    let value = |one: &Measured| one.value.unwrap_or(f64::NEG_INFINITY);
    let half =
        |one: &Measured| rng::stream(seed, &format!("half of {:?}", one.ids)).random::<bool>();
    let halves: Vec<bool> = all.iter().map(half).collect();
    let of = |form: Option<TokenForm>, other: bool| -> Vec<f64> {
        (all.iter().zip(&halves))
            .filter(|(one, half)| one.ids.len() == 1 && **half == other)
            .filter(|(one, _)| form.is_none_or(|form| form == one.form))
            .map(|(one, _)| value(one))
            .collect()
    };
    let forms: BTreeSet<TokenForm> = all.iter().map(|one| one.form).collect();
    let mut p_values = vec![None; all.len()];
    let pools = [of(None, false), of(None, true)];
    for form in &forms {
        let own = [of(Some(*form), false), of(Some(*form), true)];
        let fitted = |values: &'_ [Vec<f64>; 2]| values.iter().all(|v| Tail::fit(v).is_some());
        let values = if fitted(&own) { &own } else { &pools };
        // Where one half cannot be tested, neither is.
        let (Some(first), Some(second)) = (Tail::fit(&values[0]), Tail::fit(&values[1])) else {
            continue;
        };
        for (at, one) in all.iter().enumerate().filter(|(_, one)| one.form == *form) {
            let other = if halves[at] { &first } else { &second };
            p_values[at] = Some(other.p_value(value(one)));
        }
    }
    let p: Vec<f64> = p_values.iter().flatten().copied().collect();
    let mut q = stats::q_values(&p).into_iter();
    p_values.into_iter().map(|p| Some((p?, q.next()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values like those of the others: next to none is flagged, and what stands out is.
    #[test]
    fn what_stands_out_from_its_form_is_flagged() {
        let mut rng = rng::stream(1, "values");
        let ids: Vec<Vec<u32>> = (0..4000).map(|id| vec![id]).collect();
        let forms = [TokenForm::Word, TokenForm::Fragment];
        let mut all: Vec<Measured> = (ids.iter().enumerate())
            .map(|(at, ids)| {
                // Fragments have larger values than words.
                let scale = [1.0, 5.0][at % 2];
                let value = -scale * rng.random_range(f64::EPSILON..1.0).ln();
                Measured { ids, form: forms[at % 2], value: Some(value) }
            })
            .collect();
        let flagged = |all: &[Measured]| -> Vec<usize> {
            let tested = tested(all, 1);
            (0..all.len()).filter(|at| tested[*at].is_some_and(|(_, q)| q <= 0.05)).collect()
        };
        assert!(flagged(&all).len() <= 2, "{:?}", flagged(&all));
        (all[0].value, all[1].value) = (Some(22.0), Some(22.0));
        let found = flagged(&all);
        assert!(found.contains(&0) && !found.contains(&1), "{found:?}");
        assert!(tested(&all[..50], 1).iter().all(Option::is_none));
    }
}
