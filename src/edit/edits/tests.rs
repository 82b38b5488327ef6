use super::super::steering::{InLayer, ResidualSite, SteeringChange, SteeringVector};
use super::*;

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
    let retokenize = |position, pieces| Retokenize { position, pieces: vec![1; pieces] };
    check(retokenize(4, 2), Ok(()));
    check(retokenize(5, 2), Err("position"));
    for pieces in [0, 1, MAX_PIECES + 1] {
        check(retokenize(4, pieces), Err("pieces"));
    }
    for action in [Action::Mask, Action::Force] {
        check(Edit::lesion(head, action), Err("action"));
        check(Edit::lesion(expert, action), Ok(()));
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
