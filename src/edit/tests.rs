//! Tests of the edit language.

use proptest::prelude::*;

use super::{
    Action, Component, Edit, EmbeddingChange, InLayer, Lookup, Matrix, ResidualSite, Steering,
    SteeringChange, SteeringVector,
};

fn token_id(text: &str) -> Result<u32, String> {
    [" garden", "'", "\n"]
        .iter()
        .position(|known| *known == text)
        .map(|id| id as u32)
        .ok_or_else(|| format!("{text:?} is not one token"))
}

fn steering(
    site: ResidualSite,
    vector: SteeringVector,
    change: SteeringChange,
    position: Option<usize>,
) -> Edit {
    Edit::Steering { steering: Steering { site, vector, change }, position }
}

/// A vocabulary of three texts and a file.
struct Known;

impl Lookup for Known {
    fn token_id(&self, text: &str) -> Result<u32, String> {
        token_id(text)
    }

    fn vector(&self, file: &str) -> Result<Vec<f32>, String> {
        match file {
            "v.safetensors" => Ok(vec![1.0, -2.0]),
            _ => Err(format!("{file}: no such file")),
        }
    }
}

fn read(text: &str) -> Result<Edit, String> {
    Edit::parse(text, &Known)
}

#[test]
fn edits_are_read_as_they_are_written_by_hand() {
    let head = Component::Head { layer: 3, head: 1 };
    let expert = Component::Expert { layer: 0, expert: 5 };
    let mid = ResidualSite { layer: 3, at: InLayer::Mid };
    let values = |values: &[f32]| SteeringVector::Values { values: values.into() };
    for (text, expected) in [
        ("replace 4 ' garden'", Edit::Replace { position: 4, id: 0 }),
        ("  insert\t0 \"'\" ", Edit::Insert { position: 0, id: 1 }),
        (r"insert 0 '\''", Edit::Insert { position: 0, id: 1 }),
        (r"replace 2 '\n'", Edit::Replace { position: 2, id: 2 }),
        ("replace 4 1234", Edit::Replace { position: 4, id: 1234 }),
        ("delete 7", Edit::Delete { position: 7 }),
        (
            "retokenize 7 ' garden' 12 '\\''",
            Edit::Retokenize { position: 7, pieces: vec![0, 12, 1] },
        ),
        ("zero L3.head1", Edit::lesion(head, Action::Zero)),
        (
            "mean L3.head1 at 5",
            Edit::Lesion { component: head, action: Action::Mean, position: Some(5) },
        ),
        ("scale -2.5 L3.head1", Edit::lesion(head, Action::Scale { factor: -2.5 })),
        (
            "noise 0.5 L3.head1 at 2 seed 9",
            Edit::Lesion {
                component: head,
                action: Action::Noise { seed: 9, strength: 0.5 },
                position: Some(2),
            },
        ),
        ("mask L0.expert5", Edit::lesion(expert, Action::Mask)),
        ("force L0.expert5", Edit::lesion(expert, Action::Force)),
        (
            "embedding 1 noise 2",
            Edit::Embedding {
                position: 1,
                change: EmbeddingChange::Noise { seed: 0, strength: 2.0 },
            },
        ),
        (
            "embedding 1 towards ' garden' 0.5",
            Edit::Embedding {
                position: 1,
                change: EmbeddingChange::Towards { id: 0, strength: 0.5 },
            },
        ),
        (
            "carry L3.state at 4 from 5 ' garden'",
            Edit::CarryState {
                component: Component::State { layer: 3, part: None },
                position: 4,
                from: vec![5, 0],
            },
        ),
        ("freeze-routing", Edit::FreezeRouting),
        (
            "add -1.5 'v.safetensors' L3.resid_mid at 5",
            steering(mid, values(&[1.0, -2.0]), SteeringChange::Add { strength: -1.5 }, Some(5)),
        ),
        (
            "remove v.safetensors blocks.3.hook_resid_mid",
            steering(mid, values(&[1.0, -2.0]), SteeringChange::Remove, None),
        ),
        (
            "clamp 2 [0.5,-1e2] L3.resid_mid",
            steering(mid, values(&[0.5, -100.0]), SteeringChange::Clamp { value: 2.0 }, None),
        ),
        (
            "remove random 4 L3.resid_mid seed 7",
            steering(
                mid,
                SteeringVector::Random { seed: 7, norm: 4.0 },
                SteeringChange::Remove,
                None,
            ),
        ),
    ] {
        assert_eq!(read(text).as_ref(), Ok(&expected), "{text}");
    }
}

#[test]
fn errors_name_the_edit_and_what_was_expected() {
    for (text, expected) in [
        ("", "expected replace, insert"),
        ("repalce 4 5", "`repalce` is no edit; expected replace"),
        ("replace", "expected a position"),
        ("replace four 5", "expected a position (a token's number, from 0), got `four`"),
        ("replace -1 5", "expected a position"),
        ("replace 4", "expected a token (an id, or text in quotes) at the end"),
        ("replace 4 garden", "expected a token (an id, or text in quotes), got `garden`"),
        ("replace 4 ' gar", "the quote ' is not closed"),
        ("replace 4 ' gar\\", "the quote ' is not closed"),
        ("replace 4 'a'b", "expected a space after the closing '"),
        ("replace 4 'two tokens'", "\"two tokens\" is not one token"),
        ("replace '4' 5", "expected a position (a token's number, from 0), got the text '4'"),
        ("retokenize 4", "expected a token (an id, or text in quotes) at the end"),
        ("retokenize 4 5 garden", "expected a token (an id, or text in quotes), got `garden`"),
        ("zero L3.hat1", "is not a component"),
        ("zero L3.head1 at", "expected a position"),
        ("zero L3.head1 5", "`5` is one word too many"),
        ("scale L3.head1", "expected a factor (a finite number), got `L3.head1`"),
        ("scale NaN L3.head1", "expected a factor"),
        ("scale 1e99 L3.head1", "expected a factor"),
        ("mask L3.head1", "L3.head1 is no expert"),
        ("embedding 3", "expected noise, towards or direction"),
        ("embedding 3 sideways 2", "expected noise, towards or direction, got `sideways`"),
        ("carry L3.head1 at 4 from 5", "is no recurrent state"),
        ("carry L3.state at 4 from", "expected a token"),
        ("noise 1 L3.head1 seed x", "expected a seed"),
        ("add 1", "expected a vector (a safetensors file"),
        ("add 1 gone L3.resid_mid", "gone: no such file"),
        ("add 1 [0.5,x] L3.resid_mid", "`x` is no finite number"),
        ("remove [] L3.resid_mid", "`` is no finite number"),
        ("add 1 [1] L3.mlp", "`L3.mlp` is no place in the residual stream"),
        ("remove random L3.resid_mid", "expected a length (a finite number)"),
        ("clamp 1 [1] L3.resid_mid at", "expected a position"),
        ("clamp 1 [1] L3.resid_mid seed 4", "`seed` is one word too many"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.starts_with(&format!("edit `{text}`: ")), "{error}");
        assert!(error.contains(expected), "{text}: {error}");
    }
    let long = read(&format!("replace {}", "9".repeat(1 << 20))).unwrap_err();
    assert!(long.len() < 400, "{}", long.len());
}

fn component() -> impl Strategy<Value = Component> {
    (0..99_usize, 0..9999_usize, 0..7_usize).prop_map(|(layer, index, kind)| match kind {
        0 => Component::Embed,
        1 => Component::Head { layer, head: index },
        2 => Component::Mlp { layer },
        3 => Component::Neuron { layer, neuron: index },
        4 => Component::Expert { layer, expert: index },
        5 => Component::Weight { layer, matrix: Matrix::Down, out: index, input: layer },
        _ => Component::State { layer, part: Some(index) },
    })
}

fn finite() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("finite", |x| x.is_finite())
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let numbers = (any::<usize>(), any::<u32>(), any::<u32>(), any::<u64>(), finite());
    (numbers, component(), any::<bool>(), 0..20_usize).prop_map(
        |((position, id, other, seed, strength), component, anywhere, kind)| {
            let place = (!anywhere).then_some(position);
            let layer = component.layer();
            let expert = Component::Expert { layer, expert: id as usize };
            let lesion = |component, action| Edit::Lesion { component, action, position: place };
            let embedding = |change| Edit::Embedding { position, change };
            match kind {
                0 => Edit::Replace { position, id },
                1 => Edit::Insert { position, id },
                2 => Edit::Delete { position },
                3 => lesion(component, Action::Zero),
                4 => lesion(component, Action::Mean),
                5 => lesion(component, Action::Scale { factor: strength }),
                6 => lesion(component, Action::Noise { seed, strength }),
                7 => lesion(expert, Action::Mask),
                8 => lesion(expert, Action::Force),
                9 => embedding(EmbeddingChange::Noise { seed, strength }),
                10 => embedding(EmbeddingChange::Towards { id, strength }),
                11 => embedding(EmbeddingChange::Direction { from: id, to: other, strength }),
                12 => Edit::CarryState {
                    component: Component::State { layer, part: None },
                    position,
                    from: vec![id, other],
                },
                13 => Edit::FreezeRouting,
                19 => Edit::Retokenize { position, pieces: vec![id, other, id] },
                _ => {
                    let places = [InLayer::Pre, InLayer::Mid, InLayer::Post];
                    let site = ResidualSite { layer, at: places[kind % 3] };
                    let vector = match seed % 2 {
                        0 => SteeringVector::Random { seed, norm: strength },
                        _ => SteeringVector::Values { values: vec![strength, -1.5] },
                    };
                    let change = match kind {
                        14 | 15 => SteeringChange::Add { strength },
                        16 | 17 => SteeringChange::Clamp { value: strength },
                        _ => SteeringChange::Remove,
                    };
                    steering(site, vector, change, place)
                }
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_reads_back(edit in any_edit()) {
        prop_assert_eq!(read(&edit.to_text()), Ok(edit.clone()), "{}", edit.to_text());
    }

    #[test]
    fn any_text_is_an_edit_or_an_error(text in ".{0,80}") {
        let _ = read(&text);
    }

    #[test]
    fn words_in_any_order_are_an_edit_or_an_error(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "replace", "retokenize", "zero", "scale", "noise", "carry", "embedding", "towards",
                "at", "from", "seed", "add", "clamp", "random", "[1]", "L1.resid_mid", "L1.head2",
                "L0.state",
                "4", "-0.5", "' garden'", "'", "\\",
            ]),
            0..8,
        )
    ) {
        let _ = read(&words.join(" "));
    }
}
