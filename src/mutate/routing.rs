//! Experts that a prompt uses more than other prompts do are taken from it, and those that it uses
//! less are given to it: masked or forced outright, or demoted or promoted softly.

use rand::Rng as _;

use super::layers::Layers;
use super::lesions::{DEMOTIONS, PROMOTIONS};
use super::mutator::{Context, Mutator, extend, mutators};
use crate::edit::{Action, Component, Edit, Trial};
use crate::model::Config;
use crate::rng::{Rng, pick};

mutators! {
    /// Takes from a prompt experts that it uses more than others do, and gives it those that it
    /// uses less.
    Routing;
}

/// Experts that are taken away or given together, at most.
const TOGETHER: usize = 3;

/// Share of changes that leave no choice: an expert is masked, or takes all tokens.
const OUTRIGHT: f64 = 0.25;

impl Mutator for Routing {
    fn name(&self) -> &'static str {
        "routing"
    }

    fn groups(&self) -> &'static [&'static str] {
        &["lesions"]
    }

    fn applies(&self, config: &Config) -> bool {
        config.experts.is_some()
    }

    fn propose(&self, parent: &Trial, context: &Context, rng: &mut Rng) -> Option<Trial> {
        let own = context.routing.iter().find(|contrast| contrast.base == parent.base)?;
        let allowed = |(component, _): &&(Component, f64)| Layers::allow(context.layers, component);
        let experts: Vec<&(Component, f64)> = own.experts.iter().filter(allowed).collect();
        let outright = rng.random_bool(OUTRIGHT);
        let mut edits: Vec<Edit> = Vec::new();
        for _ in 0..rng.random_range(1..=TOGETHER) {
            let (component, more) = **pick(&experts, rng)?;
            let action = match (more > 0.0, outright) {
                (true, true) => Action::Mask,
                (false, true) => Action::Force,
                (true, false) => Action::Promote { logit: *pick(&DEMOTIONS, rng)? },
                (false, false) => Action::Promote { logit: *pick(&PROMOTIONS, rng)? },
            };
            if edits.iter().all(|edit| edit.component() != Some(&component)) {
                edits.push(Edit::lesion(component, action));
            }
        }
        extend(parent, edits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::mutate::routing_contrast::RoutingContrast;
    use crate::testing::fake;

    #[test]
    fn what_a_prompt_uses_is_taken_and_what_others_use_is_given() {
        let (config, vocabulary) = (fake::config(), fake::vocabulary());
        let expert = |expert| Component::Expert { layer: 0, expert };
        let experts = vec![(expert(3), 0.75), (expert(1), -0.5), (expert(2), 0.25)];
        let base: Arc<[u32]> = Arc::from([1, 50, 51]);
        let contrasts = [RoutingContrast { base: base.clone(), experts: experts.clone() }];
        let context = Context { routing: &contrasts, ..fake::context(&config, &vocabulary) };
        let mut rng = crate::rng::stream(3, "test");
        let parent = Trial::new(base, [4]);
        let of =
            |component: &Component| experts.iter().find(|(known, _)| known == component).unwrap().1;
        let mut sizes = BTreeSet::new();
        for _ in 0..100 {
            let trial = Routing.propose(&parent, &context, &mut rng).unwrap();
            sizes.insert(trial.edits.len());
            for edit in &trial.edits {
                let Edit::Lesion { component, action, position: None } = edit else { panic!() };
                let takes = match action {
                    Action::Mask => true,
                    Action::Force => false,
                    Action::Promote { logit } => *logit < 0.0,
                    other => panic!("{other:?}"),
                };
                assert_eq!(takes, of(component) > 0.0, "{edit:?}");
            }
        }
        assert_eq!(sizes, [1, 2, 3].into());
        let other = Trial::new([1, 2], [4]);
        assert_eq!(Routing.propose(&other, &context, &mut rng), None);
    }
}
