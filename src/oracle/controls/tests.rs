use super::*;
use crate::edit::{Action, AttentionKnockout, EmbeddingChange, Matrix};
use crate::testing::fake;

/// Draws controls of a trial with these edits and checks what each must satisfy.
fn check(edits: Vec<Edit>, expect: impl Fn(&[Edit]) -> bool) {
    check_in((1..=10).collect(), edits, expect);
}

fn check_in(base: Vec<u32>, edits: Vec<Edit>, expect: impl Fn(&[Edit]) -> bool) {
    let trial = Trial::new(base, [20, 21]).with_edits(edits);
    // Deep enough for lesions of whole MLPs to have controls.
    let (config, vocabulary) = (fake::config_of(12), fake::vocabulary());
    let controls = draw(&trial, 16, 7, &config, &vocabulary);
    assert!(controls.len() >= 3, "{} controls of {:?}", controls.len(), trial.edits);
    assert_eq!(controls, draw(&trial, 16, 7, &config, &vocabulary));
    assert_ne!(controls, draw(&trial, 16, 8, &config, &vocabulary));
    for (index, control) in controls.iter().enumerate() {
        assert!(control != &trial && !controls[..index].contains(control));
        assert_eq!((&control.base, &control.continuation), (&trial.base, &trial.continuation));
        assert!(expect(&control.edits), "{:?} is no control of {:?}", control.edits, trial.edits);
    }
}

#[test]
fn controls_match_their_trials() {
    use Edit::*;
    let ordinary = |id: u32| fake::vocabulary().ordinary.contains(&id);
    check(vec![Replace { position: 3, id: 666 }, Insert { position: 5, id: 666 }], |edits| {
        match edits {
            [Replace { position: 3, id: a }, Insert { position: 5, id: b }] => {
                a == b && ordinary(*a)
            }
            _ => false,
        }
    });
    check(
        vec![Delete { position: 4 }],
        |edits| matches!(edits, [Delete { position }] if *position < 9 && *position != 4),
    );
    // The last token of the prompt is like no other, and another edit does not change that.
    let last = Trial::new((1..=10).collect::<Vec<u32>>(), [20, 21]);
    let last = last.with_edits(vec![Delete { position: 9 }]);
    assert_eq!(draw(&last, 16, 1, &fake::config(), &fake::vocabulary()), []);
    check(
        vec![Delete { position: 9 }, Replace { position: 3, id: 666 }, Delete { position: 4 }],
        |edits| match edits {
            [Delete { position: 9 }, Replace { position: 3, .. }, Delete { position }] => {
                *position < 9 && ![3, 4].contains(position)
            }
            _ => false,
        },
    );
    check(
        vec![Embedding {
            position: 2,
            change: EmbeddingChange::Direction { from: 1, to: 2, strength: 0.5 },
        }],
        |edits| match edits {
            [Embedding { position: 2, change: EmbeddingChange::Noise { strength, .. } }] => {
                *strength == 0.5
            }
            _ => false,
        },
    );
    check(
        vec![Embedding {
            position: 2,
            change: EmbeddingChange::Towards { id: 666, strength: 0.5 },
        }],
        |edits| match edits {
            [Embedding { position: 2, change: EmbeddingChange::Towards { id, strength } }] => {
                *strength == 0.5 && ordinary(*id)
            }
            _ => false,
        },
    );
    let head = Component::Head { layer: 1, head: 2 };
    check(vec![Edit::lesion(head, Action::Zero)], |edits| match edits {
        [Lesion { component, action: Action::Zero, .. }] => {
            component.kind() == "head" && *component != head
        }
        _ => false,
    });
    let mlp = Component::Mlp { layer: 0 };
    check(vec![Edit::lesion(mlp, Action::Mean)], |edits| match edits {
        [Lesion { component, action: Action::Mean, .. }] => {
            component.kind() == "mlp" && *component != mlp
        }
        _ => false,
    });
    let weight = Component::Weight { layer: 1, matrix: Matrix::Down, out: 3, input: 4 };
    check(vec![Edit::lesion(weight, Action::Zero)], |edits| match edits {
        [
            Lesion {
                component: Component::Weight { layer: 1, matrix: Matrix::Down, out, input },
                ..
            },
        ] => {
            (*out, *input) != (3, 4)
                && *out < fake::config().hidden_size
                && *input < fake::config().intermediate_size
        }
        _ => false,
    });
}

#[test]
fn controls_of_retokenizations_are_other_splits() {
    use Edit::*;
    // Five digits each: the split of 40, "01000", is one of four.
    let base: Vec<u32> = (32..=41).collect();
    let retokenize = |position, pieces: &[u32]| Retokenize { position, pieces: pieces.into() };
    let splits = fake::vocabulary().splits;
    let is_split = |position: usize, pieces: &[u32]| {
        let of_token = splits.of_token(32 + position as u32, pieces.len());
        (0..of_token.count()).any(|index| of_token.nth(index).as_deref() == Some(pieces))
    };
    check_in(base.clone(), vec![retokenize(8, &[2, 24])], |edits| match edits {
        [Retokenize { position, pieces }] => *position < 9 && is_split(*position, pieces),
        _ => false,
    });
    let edits = vec![
        retokenize(7, &[2, 23]),
        retokenize(8, &[2, 2, 8]),
        Replace { position: 5, id: 666 },
        Delete { position: 3 },
    ];
    check_in(base, edits, |edits| match edits {
        [
            Retokenize { position: a, pieces: two },
            Retokenize { position: b, pieces: three },
            Replace { position: 5, .. },
            Delete { position: c },
        ] => {
            let taken = [8, 5, 3].contains(a) || [7, 5, 3].contains(b);
            let alike = (two.len(), three.len()) == (2, 3);
            let split = is_split(*a, two) && is_split(*b, three);
            !taken && alike && split && a != b && a != c && b != c
        }
        _ => false,
    });
    // The last token of a prompt is compared with itself alone.
    let last = vec![32, 33, 34, 256];
    check_in(
        last,
        vec![retokenize(3, &[2, 2, 64])],
        |edits| matches!(edits, [Retokenize { position: 3, pieces }] if pieces.len() == 3),
    );
}

/// The controls of a reduced trial are those of the whole one, reduced alike.
#[test]
fn substitutions_are_the_controls_and_reduce_with_the_trial() {
    use Edit::*;
    let head = |head| Edit::lesion(Component::Head { layer: 1, head }, Action::Zero);
    let edits = vec![
        Replace { position: 3, id: 666 },
        Delete { position: 6 },
        Replace { position: 7, id: 667 },
        Embedding { position: 8, change: EmbeddingChange::Noise { seed: 1, strength: 0.5 } },
        head(2),
    ];
    let trial = Trial::new((1..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(edits);
    let (config, vocabulary) = (fake::config_of(12), fake::vocabulary());
    let whole = draw(&trial, 16, 7, &config, &vocabulary);
    let made = substitutions(&trial, 16, 7, &config, &vocabulary);
    assert_eq!(made.iter().map(|s| s.apply(&trial)).collect::<Vec<_>>(), whole);
    // Two tokens cut in front, and the first edit gone.
    let cut = Trial::new((3..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(vec![
        Delete { position: 4 },
        Replace { position: 5, id: 667 },
        Embedding { position: 6, change: EmbeddingChange::Noise { seed: 1, strength: 0.5 } },
        head(2),
    ]);
    for (control, substitution) in whole.iter().zip(&made) {
        let reduced = substitution.apply(&cut);
        let [_, Delete { position: deleted }, rest @ ..] = &control.edits[..] else { panic!() };
        let [Delete { position }, reduced @ ..] = &reduced.edits[..] else { panic!() };
        // A place that was cut has another in its stead.
        assert!(*deleted < 2 || *position == deleted - 2, "{deleted} {position}");
        let mut moved = rest.to_vec();
        moved.iter_mut().flat_map(Edit::positions_mut).for_each(|at| *at -= 2);
        assert_eq!(reduced, moved);
    }
}

/// The last token of a prompt is like no other: a reduction that makes the deleted token the last
/// leaves nothing to compare its deletion with, and so no verdict.
#[test]
fn a_deletion_that_a_reduction_makes_the_last_token_has_no_other_controls() {
    let delete = |position| vec![Edit::Delete { position }];
    let trial = Trial::new((1..=10).collect::<Vec<u32>>(), [20, 21]).with_edits(delete(6));
    let made = substitutions(&trial, 16, 7, &fake::config_of(12), &fake::vocabulary());
    assert!(made.iter().all(|substitution| substitution.apply(&trial).edits != trial.edits));
    let cut = Trial::new((1..=7).collect::<Vec<u32>>(), [20, 21]).with_edits(delete(6));
    assert!(made.iter().all(|substitution| substitution.apply(&cut).edits == cut.edits));
}

#[test]
fn other_splits_reduce_with_the_trial() {
    let pieces = vec![8, 16];
    let at = |position| vec![Edit::Retokenize { position, pieces: pieces.clone() }];
    // Position 12 is seven digits, all others six or more.
    let ids: Vec<u32> = (100..120).map(|id| if id == 112 { 128 } else { id }).collect();
    let trial = Trial::new(ids.clone(), [20, 21]).with_edits(at(12));
    let (config, vocabulary) = (fake::config(), fake::vocabulary());
    let whole = draw(&trial, 16, 7, &config, &vocabulary);
    let made = substitutions(&trial, 16, 7, &config, &vocabulary);
    assert_eq!(made.iter().map(|s| s.apply(&trial)).collect::<Vec<_>>(), whole);
    let split = |trial: &Trial| match &trial.edits[..] {
        [Edit::Retokenize { position, pieces }] => (*position, pieces.clone()),
        other => panic!("{other:?}"),
    };
    // The beginning is cut, and 105 is another token now.
    let mut cut = ids[3..].to_vec();
    cut[2] = 9;
    let cut = Trial::new(cut, [20, 21]).with_edits(at(9));
    let (mut same, mut others) = (0, 0);
    for (control, substitution) in whole.iter().zip(&made) {
        let (control, reduced) = (split(control), split(&substitution.apply(&cut)));
        if control.0 >= 3 && control.0 != 5 {
            assert_eq!(reduced, (control.0 - 3, control.1));
            same += 1;
        } else {
            let token = cut.base[reduced.0];
            let of_token = vocabulary.splits.of_token(token, 2);
            let mut splits = (0..of_token.count()).filter_map(|index| of_token.nth(index));
            assert!(splits.any(|pieces| pieces == reduced.1) && reduced != (9, pieces.clone()));
            others += 1;
        }
    }
    assert!(same > 0 && others > 0, "{same} {others}");
    // Where nothing else is left, a control is the trial.
    let alone = Trial::new([128], [20]).with_edits(at(0));
    let controls: Vec<Trial> = made.iter().map(|s| s.apply(&alone)).collect();
    assert!(controls.contains(&alone));
    assert!(controls.iter().all(|control| split(control).0 == 0));
}

fn knockout(component: Component, position: Option<usize>, key: usize) -> Edit {
    Edit::AttentionKnockout(AttentionKnockout { component, position, key })
}

/// The same queries, another component, another key before the query.
#[test]
fn controls_of_knockouts_cut_other_edges() {
    let head = |head| Component::Head { layer: 1, head };
    for (component, position, key, keys) in [
        (head(2), Some(7), 3, 1..7),
        (head(2), Some(11), 10, 10..11),
        // The first position is like no other.
        (head(2), Some(7), 0, 0..1),
        (head(2), None, 0, 0..1),
        // The last position that is read follows every token of the prompt.
        (head(2), None, 3, 1..10),
        (Component::Attention { layer: 1 }, Some(7), 3, 1..7),
    ] {
        check(vec![knockout(component, position, key)], |edits| match edits {
            [Edit::AttentionKnockout(control)] => {
                control.component.kind() == component.kind()
                    && control.component != component
                    && control.position == position
                    && keys.contains(&control.key)
                    && (control.key != key || keys.len() == 1)
            }
            _ => false,
        });
    }
    // A head that loses two edges loses two in the control, also where one key has little room.
    let two = vec![knockout(head(2), Some(8), 6), knockout(head(2), Some(3), 1)];
    check(two, |edits| match edits {
        [Edit::AttentionKnockout(a), Edit::AttentionKnockout(b)] => {
            a.key != b.key && (2..8).contains(&a.key) && [1, 2].contains(&b.key)
        }
        _ => false,
    });
    // Heads that lose one edge lose one in the control, which no deletion takes away.
    let heads = [0, 2, 3].map(|h| knockout(head(h), Some(7), 3));
    let deletions = [4, 6].map(|position| Edit::Delete { position });
    for edits in [[&heads[..], &deletions].concat(), [&deletions[..], &heads].concat()] {
        check(edits, |edits| {
            let layout = Trial::new([0; 10], [0; 2]).with_edits(edits.to_vec()).layout();
            let keys = edits.iter().filter_map(|edit| match edit {
                Edit::AttentionKnockout(knockout) => layout.edges(knockout).map(|_| knockout.key),
                _ => None,
            });
            let keys: Vec<usize> = keys.collect();
            keys.len() == 3 && keys.iter().all(|key| *key == keys[0] && *key != 3)
        });
    }
}

#[test]
fn keys_of_controls_reduce_with_the_trial() {
    let head = |head| Component::Head { layer: 1, head };
    let trial = |base: std::ops::RangeInclusive<u32>, cut: usize| {
        let edits = [(Some(8 - cut), 5 - cut), (None, 4 - cut)];
        let edits = (2..).zip(edits).map(|(h, (query, key))| knockout(head(h), query, key));
        Trial::new(base.collect::<Vec<u32>>(), [20, 21]).with_edits(edits.collect())
    };
    let (whole, cut) = (trial(1..=10, 0), trial(3..=10, 2));
    let (config, vocabulary) = (fake::config_of(12), fake::vocabulary());
    let controls = draw(&whole, 16, 7, &config, &vocabulary);
    let made = substitutions(&whole, 16, 7, &config, &vocabulary);
    assert_eq!(made.iter().map(|s| s.apply(&whole)).collect::<Vec<_>>(), controls);
    let mut lost = 0;
    for (control, substitution) in controls.iter().zip(&made) {
        for (control, (reduced, own)) in
            control.edits.iter().zip(substitution.apply(&cut).edits.iter().zip(&cut.edits))
        {
            let [control, reduced, own] = [control, reduced, own].map(|edit| match edit {
                Edit::AttentionKnockout(knockout) => *knockout,
                other => panic!("{other:?}"),
            });
            assert_eq!((reduced.component, reduced.position), (control.component, own.position));
            // A key that was cut, or is the first now, has one near the trial's in its stead.
            if control.key > 2 {
                assert_eq!(reduced.key, control.key - 2);
            } else {
                assert!(reduced.key.abs_diff(own.key) <= 2, "{} {}", reduced.key, own.key);
                lost += 1;
            }
            assert!(![0, 2, 3].contains(&reduced.key));
        }
        let edits = substitution.apply(&cut).edits;
        let keys: Vec<usize> = edits.iter().filter_map(|edit| edit.positions().last()).collect();
        assert!(keys.len() == 2 && keys[0] != keys[1], "{keys:?}");
    }
    assert!((1..32).contains(&lost), "{lost}");
    // A key that is the first after a reduction is compared with the first in other heads.
    let first = trial(4..=10, 3).with_edits(vec![knockout(head(2), Some(5), 0)]);
    for substitution in &made {
        let [Edit::AttentionKnockout(control)] = substitution.apply(&first).edits[..] else {
            panic!()
        };
        assert!(control.key == 0 && control.component != head(2));
    }
}

#[test]
fn what_has_no_alternative_has_no_controls() {
    let trial = Trial::new([1, 2], [3]);
    let embed = trial.with_edits(vec![Edit::lesion(Component::Embed, Action::Zero)]);
    // Three other MLPs are too few, and an edit beside the lesion does not make them more.
    let mlp = Edit::lesion(Component::Mlp { layer: 1 }, Action::Zero);
    let few = trial.with_edits(vec![mlp.clone()]);
    let beside = trial.with_edits(vec![Edit::Replace { position: 0, id: 9 }, mlp]);
    // The only token of more than one digit can be split in seven other ways.
    let split = Edit::Retokenize { position: 2, pieces: vec![2, 128] };
    let token = Edit::Replace { position: 0, id: 9 };
    let short = Trial::new([1, 2, 256], [3]).with_edits(vec![split]);
    let with_token = short.with_edits([&short.edits[..], &[token]].concat());
    let block = Component::Attention { layer: 1 };
    let edge = Trial::new([1; 9], [3]).with_edits(vec![knockout(block, None, 3)]);
    for trial in [trial, embed, few, beside, short, with_token, edge] {
        assert!(draw(&trial, 16, 1, &fake::config(), &fake::vocabulary()).is_empty());
    }
}
