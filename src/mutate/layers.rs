//! A range of layers that proposals are restricted to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::edit::Component;

/// Layers `first` to `last`, both included; written `3-7`, or `3` for one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layers {
    /// The lowest layer, counted from 0.
    pub first: usize,
    /// The highest layer; never below `first`.
    pub last: usize,
}

impl Layers {
    /// Returns whether a layer is in the range.
    pub fn contains(&self, layer: usize) -> bool {
        (self.first..=self.last).contains(&layer)
    }

    /// Returns whether `layers`, where there is a restriction, has the component; the embedding
    /// counts as layer 0.
    pub fn allow(layers: Option<Self>, component: &Component) -> bool {
        layers.is_none_or(|layers| layers.contains(component.layer()))
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(40).collect();
        let bad = || format!("`{}` is no range of layers; examples: 3-7, 5", shown.escape_debug());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| bad());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{first}-{last} is empty: the first layer is above the last"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written() {
        for (text, first, last) in [("3-7", 3, 7), ("5", 5, 5), ("0 - 0", 0, 0)] {
            assert_eq!(text.parse(), Ok(Layers { first, last }), "{text}");
        }
        assert_eq!("3-7".parse::<Layers>().unwrap().to_string(), "3-7");
        assert_eq!("4-4".parse::<Layers>().unwrap().to_string(), "4");
        for bad in ["", "-", "3-", "-3", "a-b", "3-7-9", "7-3", "99999999999999999999"] {
            assert!(bad.parse::<Layers>().is_err(), "{bad}");
        }
    }

    #[test]
    fn mutators_that_draw_components_stay_within_the_layers() {
        use crate::edit::{Edit, Trial};
        use crate::mutate::{Context, select};
        use crate::oracle::controls;
        use crate::testing::fake;

        let (config, vocabulary) = (fake::config_of(12), fake::vocabulary());
        let layers = Layers { first: 1, last: 2 };
        let component = |edit: &Edit| match edit.component() {
            Some(component) => *component,
            None => panic!("{edit:?} is no lesion"),
        };
        let context = Context {
            weights: &fake::weights(),
            interactions: &[fake::interactions()],
            layers: Some(layers),
            ..fake::context(&config, &vocabulary)
        };
        let parent = Trial::new((1..=10).collect::<Vec<u32>>(), [20, 21]);
        let mut rng = crate::rng::stream(1, "test");
        let groups = ["lesions", "sets", "weights"].map(String::from);
        let (mut drawn, mut outside) = (0, 0);
        for mutator in select(&groups).unwrap().into_iter().filter(|m| m.applies(&config)) {
            for _ in 0..200 {
                let Some(trial) = mutator.propose(&parent, &context, &mut rng) else { continue };
                drawn += 1;
                let within = |edit: &Edit| Layers::allow(Some(layers), &component(edit));
                assert!(trial.edits.iter().all(within), "{}: {:?}", mutator.name(), trial.edits);
                // What it is compared with comes from the whole model.
                let controls = controls::draw(&trial, 16, 1, &config, &vocabulary);
                let edits = controls.iter().flat_map(|control| &control.edits);
                outside += edits.filter(|edit| !within(edit)).count();
            }
        }
        assert!(drawn > 400 && outside > 1000, "{drawn} trials, {outside} outside");
        let none = Context { layers: Some(Layers { first: 20, last: 30 }), ..context };
        for mutator in select(&groups).unwrap() {
            assert_eq!(mutator.propose(&parent, &none, &mut rng), None, "{}", mutator.name());
        }
    }

    #[test]
    fn a_range_has_both_of_its_ends() {
        let layers = Some(Layers { first: 1, last: 2 });
        let allowed = |layer| Layers::allow(layers, &Component::Mlp { layer });
        assert_eq!([0, 1, 2, 3].map(allowed), [false, true, true, false]);
        assert!(Layers::allow(None, &Component::Mlp { layer: 9 }));
    }
}
