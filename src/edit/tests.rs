//! Tests of edits: their checks, which takes the place of which, the edit language.

use proptest::prelude::*;

use super::edits::MAX_PIECES;
use super::{
    Action, AttentionKnockout, Component, Edit, EmbeddingChange, InLayer, Lookup, Matrix,
    ResidualSite, Steering, SteeringChange, SteeringVector,
};

fn check(edit: Edit, expect: Result<(), &str>) {
    let found = edit.check(5, 8);
    assert_eq!(found.as_ref().map(|_| ()).map_err(|(field, _)| *field), expect, "{edit:?}");
}

#[test]
fn faults_name_their_field() {
    use Edit::*;
    let (head, expert) =
        (Component::Head { layer: 1, head: 2 }, Component::Expert { layer: 1, expert: 2 });
    let state = Component::State { layer: 1, part: None };
    check(Replace { position: 4, id: 9 }, Ok(()));
    check(Replace { position: 5, id: 9 }, Err("position"));
    check(Insert { position: 5, id: 9 }, Ok(()));
    check(Insert { position: 6, id: 9 }, Err("position"));
    check(Lesion { component: head, action: Action::Zero, position: Some(5) }, Err("position"));
    for action in [Action::Mask, Action::Force, Action::Promote { logit: 2.0 }] {
        check(Edit::lesion(head, action), Err("action"));
        check(Edit::lesion(expert, action), Ok(()));
    }
    let retokenize = |position, pieces| Retokenize { position, pieces: vec![1; pieces] };
    check(retokenize(4, 2), Ok(()));
    check(retokenize(5, 2), Err("position"));
    for pieces in [0, 1, MAX_PIECES + 1] {
        check(retokenize(4, pieces), Err("pieces"));
    }
    check(Edit::lesion(head, Action::Scale { factor: f32::NAN }), Err("action.factor"));
    check(
        Edit::lesion(head, Action::Noise { seed: 1, strength: f32::INFINITY }),
        Err("action.strength"),
    );
    let change = EmbeddingChange::Towards { id: 3, strength: f32::NAN };
    check(Embedding { position: 1, change }, Err("change.strength"));
    let steering = |vector, change| {
        let site = ResidualSite { layer: 1, at: InLayer::Post };
        Steering { steering: crate::edit::Steering { site, vector, change }, position: Some(2) }
    };
    let values = |values: &[f32]| SteeringVector::Values { values: values.into() };
    check(steering(values(&[1.0]), SteeringChange::Remove), Ok(()));
    for bad in [vec![], vec![0.0; 4], vec![f32::NAN], vec![1.0; 9], vec![f32::MAX; 2]] {
        let expect = Err("steering.vector.values");
        check(steering(values(&bad), SteeringChange::Remove), expect);
    }
    let random = |norm| SteeringVector::Random { seed: 1, norm };
    for norm in [0.0, -1.0, f32::INFINITY] {
        let expect = Err("steering.vector.norm");
        check(steering(random(norm), SteeringChange::Remove), expect);
    }
    let (clamp, add) =
        (SteeringChange::Clamp { value: f32::NAN }, SteeringChange::Add { strength: f32::NAN });
    check(steering(random(1.0), clamp), Err("steering.change.value"));
    check(steering(random(1.0), add), Err("steering.change.strength"));
    let flipped = |component, bit| Edit::lesion(component, Action::Flip { bit });
    let weight = Component::Weight { layer: 1, matrix: Matrix::Q, out: 0, input: 0 };
    check(flipped(weight, 31), Ok(()));
    check(flipped(weight, 32), Err("action.bit"));
    check(flipped(head, 3), Err("action"));
    let resampled = |component| Edit::lesion(component, Action::Resample { seed: 1 });
    check(resampled(Component::Mlp { layer: 1 }), Ok(()));
    check(resampled(weight), Err("action"));
    check(knockout(head, Some(4), 3), Ok(()));
    check(knockout(Component::Attention { layer: 1 }, None, 3), Ok(()));
    check(knockout(head, Some(3), 3), Err("key"));
    check(knockout(head, Some(3), 4), Err("key"));
    check(knockout(head, None, 4), Err("key"));
    check(knockout(head, None, 5), Err("key"));
    check(knockout(head, Some(5), 3), Err("position"));
    check(knockout(Component::Mlp { layer: 1 }, Some(4), 3), Err("component"));
    let carry = |component, from: &[u32]| CarryState { component, position: 1, from: from.into() };
    check(carry(state, &[1, 2]), Ok(()));
    check(carry(state, &[]), Err("from"));
    check(carry(state, &[1; 9]), Err("from"));
    check(carry(head, &[1]), Err("component"));
}

#[test]
fn later_changes_of_one_thing_supersede_earlier_ones() {
    use Edit::*;
    let head = Component::Head { layer: 1, head: 2 };
    let state = Component::State { layer: 1, part: None };
    let lesion = |component, position| Lesion { component, action: Action::Zero, position };
    let change = EmbeddingChange::Noise { seed: 1, strength: 1.0 };
    let supersedes = |new: Edit, old: Edit, expect: bool| {
        assert_eq!(new.supersedes(&old), expect, "{new:?} {old:?}");
    };
    supersedes(Replace { position: 1, id: 2 }, Delete { position: 1 }, true);
    supersedes(Embedding { position: 1, change }, Replace { position: 1, id: 2 }, true);
    supersedes(Replace { position: 1, id: 2 }, Delete { position: 2 }, false);
    supersedes(Insert { position: 1, id: 2 }, Insert { position: 1, id: 2 }, false);
    supersedes(Insert { position: 1, id: 2 }, Replace { position: 1, id: 2 }, false);
    let retokenize = |position| Retokenize { position, pieces: vec![2, 3] };
    supersedes(retokenize(1), Replace { position: 1, id: 2 }, true);
    supersedes(Delete { position: 1 }, retokenize(1), true);
    supersedes(retokenize(1), retokenize(2), false);
    supersedes(Insert { position: 1, id: 2 }, retokenize(1), false);
    supersedes(lesion(head, None), lesion(head, None), true);
    supersedes(lesion(head, Some(1)), lesion(head, None), false);
    supersedes(lesion(head, Some(1)), Replace { position: 1, id: 2 }, false);
    let carry = CarryState { component: state, position: 1, from: vec![1] };
    supersedes(carry.clone(), carry.clone(), true);
    supersedes(carry, lesion(state, Some(1)), false);
    supersedes(FreezeRouting, FreezeRouting, false);
    let knockout = |position, key| knockout(head, position, key);
    supersedes(knockout(Some(4), 3), knockout(Some(4), 3), true);
    supersedes(knockout(None, 3), knockout(None, 3), true);
    supersedes(knockout(Some(4), 3), knockout(Some(4), 2), false);
    supersedes(knockout(Some(4), 3), knockout(None, 3), false);
    supersedes(knockout(None, 3), lesion(head, None), false);
}

fn knockout(component: Component, position: Option<usize>, key: usize) -> Edit {
    Edit::AttentionKnockout(AttentionKnockout { component, position, key })
}

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
        (
            "resample L3.head1 at 2 seed 9",
            Edit::Lesion {
                component: head,
                action: Action::Resample { seed: 9 },
                position: Some(2),
            },
        ),
        (
            "flip 5 L3.attn.q[2,7]",
            Edit::lesion(
                Component::Weight { layer: 3, matrix: Matrix::Q, out: 2, input: 7 },
                Action::Flip { bit: 5 },
            ),
        ),
        ("mask L0.expert5", Edit::lesion(expert, Action::Mask)),
        ("force L0.expert5", Edit::lesion(expert, Action::Force)),
        ("promote -1.5 L0.expert5", Edit::lesion(expert, Action::Promote { logit: -1.5 })),
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
        ("knockout L3.head1 to 2", knockout(head, None, 2)),
        ("knockout L3.attn to 2 at 5", knockout(Component::Attention { layer: 3 }, Some(5), 2)),
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
        ("flip -1 L3.attn.q[2,7]", "expected a bit (0 is the sign), got `-1`"),
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
        ("knockout L3.mlp to 2", "L3.mlp is no attention head or block"),
        ("knockout L3.head1 at 5", "expected `to`, got `at`"),
        ("knockout L3.head1 to ' garden'", "expected a position"),
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
    (numbers, component(), any::<bool>(), 0..24_usize).prop_map(
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
                23 => lesion(
                    Component::Weight { layer, matrix: Matrix::Q, out: 1, input: 2 },
                    Action::Flip { bit: id },
                ),
                22 => lesion(component, Action::Resample { seed }),
                21 => lesion(expert, Action::Promote { logit: strength }),
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
                20 => knockout(Component::Head { layer, head: id as usize }, place, position),
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
                "at", "knockout", "to", "from", "seed", "add", "clamp", "random", "[1]",
                "L1.resid_mid", "L1.head2", "L0.state",
                "4", "-0.5", "' garden'", "'", "\\",
            ]),
            0..8,
        )
    ) {
        let _ = read(&words.join(" "));
    }
}

#[test]
fn knockouts_are_flat_in_files() {
    let head = Component::Head { layer: 3, head: 1 };
    let json = r#"{"edit":"attention_knockout","component":"L3.head1","position":5,"key":2}"#;
    assert_eq!(serde_json::to_string(&knockout(head, Some(5), 2)).unwrap(), json);
    assert_eq!(serde_json::from_str::<Edit>(json).unwrap(), knockout(head, Some(5), 2));
    let later = r#"{"edit":"attention_knockout","component":"L3.head1","key":2}"#;
    assert_eq!(serde_json::to_string(&knockout(head, None, 2)).unwrap(), later);
    assert_eq!(serde_json::from_str::<Edit>(later).unwrap(), knockout(head, None, 2));
    let unknown = later.replace("key", "value");
    assert!(serde_json::from_str::<Edit>(&unknown).is_err());
    assert!(serde_json::from_str::<Edit>(&later.replace("}", ",\"more\":1}")).is_err());
}

#[test]
fn knockouts_are_told_in_words() {
    let head = Component::Head { layer: 3, head: 1 };
    let (at, token) = (|p: usize| format!("`{p}`"), |id: u32| id.to_string());
    for (edit, phrase, title) in [
        (
            knockout(head, Some(5), 2),
            "keep L3.head1 from attending to the token at 2, at 5 alone",
            "keeping L3.head1 from attending to `2` at `5`",
        ),
        (
            knockout(Component::Attention { layer: 3 }, None, 2),
            "keep L3.attn from attending to the token at 2",
            "keeping L3.attn from attending to `2`",
        ),
    ] {
        assert_eq!(edit.phrase(&token).to_string(), phrase);
        assert_eq!(edit.title(&token, &at), title);
        // What the edit does, without where.
        assert_eq!(edit.signature(&|_| None), format!("knockout {}", edit.component().unwrap()));
    }
}

#[test]
fn a_retokenization_shows_where_the_token_is_cut() {
    let edit = Edit::Retokenize { position: 4, pieces: vec![5, 6] };
    let token = |id: u32| format!("`t{id}`");
    assert_eq!(edit.phrase(&token).to_string(), "retokenize the token at 4 as `t5` + `t6`");
    assert_eq!(edit.title(&token, &|_| token(9)), "`t5` + `t6` for `t9`");
    assert_eq!(edit.signature(&|_| Some(9)), "retokenize Some(9) as [5, 6]");
    assert!(edit.is_token_edit() && !edit.changes_text());
    assert_eq!(edit.added_tokens(), 1);
}
