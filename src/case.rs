//! The case file: a finding, minimised and explained, that anyone can replay.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::edit::{Action, Edit, EmbeddingChange, Trial};
use crate::error::{Error, Result};
use crate::implicate::Implication;
use crate::oracle::{OracleKind, Verdict};
use crate::storage;

/// Version of the case schema written by this program; older ones stay readable.
pub const SCHEMA_VERSION: u32 = 1;

/// Most token ids (base and continuation together), edits, controls and rows of any other list that a
/// case may hold. Cases are kilobytes; these bounds keep a hostile one from costing more than it says.
pub const MAX_IDS: usize = 65_536;
pub const MAX_EDITS: usize = 65_536;
pub const MAX_CONTROLS: usize = 65_536;
pub const MAX_ROWS: usize = 1 << 20;

/// One finding, in a JSON file of its own. Token ids and edits are the truth; every text is a comment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub schema_version: u32,
    /// First 16 hex digits of the sha256 over what is replayed (model, ids, edits, oracle).
    pub id: String,
    pub model: ModelRef,
    /// Prompt ids before the edits.
    pub base: Vec<u32>,
    /// Teacher-forced continuation before the edits.
    pub continuation: Vec<u32>,
    pub edits: Vec<Edit>,
    pub verdict: Verdict,
    /// Seed from which the verdict's controls were drawn.
    pub control_seed: u64,
    pub expectation: Expectation,
    pub minimisation: Option<Minimisation>,
    pub implication: Option<Implication>,
    pub lineage: Lineage,
    /// Top next tokens at the last prompt position, before and after the edits.
    pub top_before: Vec<TokenProbability>,
    pub top_after: Vec<TokenProbability>,
    /// What a reader sees; never replayed.
    pub comment: Comment,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// How the model was named (`builtin:dense`, a folder, a GGUF file).
    pub name: String,
    /// sha256 over the model's tensors and configuration.
    pub fingerprint: String,
    /// sha256 over the tokenizer; `None` for a model without one.
    pub tokenizer: Option<String>,
}

/// What a replay should find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expectation {
    /// The glitch is there: a case of the corpus.
    Reproduces,
    /// The glitch is mended and must stay away.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Minimisation {
    /// Trials evaluated by the reduction.
    pub calls: u64,
    pub elements_before: usize,
    pub elements_after: usize,
    /// No single remaining element can go (each was tried, alone, at the end).
    pub one_minimal: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// Seed of the campaign.
    pub seed: u64,
    /// Evaluation number at which the raw finding was made.
    pub evaluation: u64,
    /// The mutators applied, first to last.
    pub mutators: Vec<String>,
    /// Name of the seed prompt it descends from.
    pub parent: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenProbability {
    pub id: u32,
    pub text: String,
    pub probability: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comment {
    /// The unedited prompt, decoded.
    pub prompt: String,
    /// The edited prompt, decoded.
    pub edited_prompt: String,
    pub continuation: String,
    /// Greedy continuation of the unedited and of the edited prompt.
    pub generated_before: String,
    pub generated_after: String,
    /// One line: what happens.
    pub title: String,
}

/// A rule that a case breaks: the field and what is wrong with it.
type Fault = (String, String);

fn fault<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Fault> {
    Err((field.into(), message.into()))
}

impl Case {
    /// The trial that is replayed.
    pub fn trial(&self) -> Trial {
        Trial { base: self.base.clone().into(), continuation: self.continuation.clone().into(), edits: self.edits.clone() }
    }

    /// The id that belongs to the content: first 16 hex digits of the sha256 over the compact JSON of
    /// model fingerprint, base, continuation, edits and oracle, in this order. Scores, lineage and
    /// comments do not enter: the same glitch found twice is one case.
    pub fn compute_id(&self) -> String {
        #[derive(Serialize)]
        struct Content<'a> {
            fingerprint: &'a str,
            base: &'a [u32],
            continuation: &'a [u32],
            edits: &'a [Edit],
            oracle: OracleKind,
        }
        let content = Content {
            fingerprint: &self.model.fingerprint,
            base: &self.base,
            continuation: &self.continuation,
            edits: &self.edits,
            oracle: self.verdict.oracle,
        };
        // Strings, integers and floats always serialise (a NaN becomes null, and `validate` refuses it).
        let json = serde_json::to_vec(&content).unwrap_or_default();
        storage::hex(&Sha256::digest(json)[..8])
    }

    /// Reads and validates a case of any schema version known.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &storage::read_bounded(path, storage::MAX_FILE)?)
    }

    /// As [`Case::read`], from the bytes of the file at `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        /// All that every version has in common.
        #[derive(Deserialize)]
        struct Versioned {
            schema_version: u32,
        }
        let case: Self = match storage::parse_json::<Versioned>(path, bytes)?.schema_version {
            // Straight from the bytes: a key that is there twice is an error, not the last one's.
            SCHEMA_VERSION => storage::parse_json(path, bytes)?,
            older => storage::from_value(path, migrate(path, storage::parse_json(path, bytes)?, older)?)?,
        };
        case.validate(path)?;
        Ok(case)
    }

    /// Writes `<id>.json` into `dir`, atomically, and returns its path. An invalid case (its id is not
    /// that of its content, a score is no number) is refused: nobody could read it again.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(format!("{}.json", self.id));
        self.validate(&path)?;
        storage::write_json(&path, self)?;
        Ok(path)
    }

    /// Checks everything that can be checked without the model; an error names `path` and the field.
    /// Whether ids and components exist is the model's to say.
    pub fn validate(&self, path: &Path) -> Result<()> {
        self.faults().map_err(|(field, message)| Error::file(path, field, message))
    }

    fn faults(&self) -> Result<(), Fault> {
        if self.schema_version != SCHEMA_VERSION {
            return fault("schema_version", format!("{} in memory, this program writes {SCHEMA_VERSION}", self.schema_version));
        }
        if self.model.fingerprint.is_empty() {
            return fault("model.fingerprint", "empty");
        }
        if self.base.is_empty() {
            return fault("base", "empty; a prompt has at least one token");
        }
        bounded("base", self.base.len(), MAX_IDS)?;
        bounded("continuation", self.continuation.len(), MAX_IDS - self.base.len())?;
        bounded("edits", self.edits.len(), MAX_EDITS)?;
        let total = self.base.len() + self.continuation.len();
        for (index, edit) in self.edits.iter().enumerate() {
            check_edit(edit, total).or_else(|(field, message)| fault(format!("edits[{index}].{field}"), message))?;
        }
        self.check_verdict()?;
        if let Some(implication) = &self.implication {
            check_implication(implication)?;
        }
        if let Some(m) = &self.minimisation
            && m.elements_after > m.elements_before
        {
            return fault("minimisation.elements_after", format!("{} out of {}", m.elements_after, m.elements_before));
        }
        bounded("lineage.mutators", self.lineage.mutators.len(), MAX_ROWS)?;
        for (name, list) in [("top_before", &self.top_before), ("top_after", &self.top_after)] {
            bounded(name, list.len(), MAX_ROWS)?;
            for (index, token) in list.iter().enumerate() {
                share(&format!("{name}[{index}].probability"), token.probability)?;
            }
        }
        // Last, because a case changed by hand is better told which rule it breaks.
        let id = self.compute_id();
        if self.id != id {
            // A hostile id may be megabytes long: it is not repeated.
            return fault("id", format!("does not match the content, whose id is {id}"));
        }
        Ok(())
    }

    fn check_verdict(&self) -> Result<(), Fault> {
        let v = &self.verdict;
        for (name, value) in
            [("score", v.score), ("threshold", v.threshold), ("margin", v.margin), ("noise_floor", v.noise_floor)]
        {
            finite(&format!("verdict.{name}"), value)?;
        }
        if v.noise_floor < 0.0 {
            return fault("verdict.noise_floor", format!("{} is negative", v.noise_floor));
        }
        share("verdict.p_value", v.p_value)?;
        bounded("verdict.controls", v.controls.len(), MAX_CONTROLS)?;
        for (index, &control) in v.controls.iter().enumerate() {
            finite(&format!("verdict.controls[{index}]"), control)?;
        }
        Ok(())
    }
}

/// Brings a case of an older schema up to the current one, version by version; files already written
/// stay readable for ever. A new version adds an arm here and never changes an old one.
fn migrate(path: &Path, value: serde_json::Value, version: u32) -> Result<serde_json::Value> {
    match version {
        SCHEMA_VERSION => Ok(value),
        newer if newer > SCHEMA_VERSION => Err(Error::file(
            path,
            "schema_version",
            format!("{newer} is newer than this program, which reads up to {SCHEMA_VERSION}; update glitch"),
        )),
        unknown => Err(Error::file(path, "schema_version", format!("{unknown} is no version of the case schema"))),
    }
}

fn bounded(field: &str, length: usize, most: usize) -> Result<(), Fault> {
    match length <= most {
        true => Ok(()),
        false => fault(field, format!("{length} entries, at most {most} are read")),
    }
}

fn finite(field: &str, value: f64) -> Result<(), Fault> {
    match value.is_finite() {
        true => Ok(()),
        false => fault(field, format!("{value} is not a finite number")),
    }
}

/// A number between 0 and 1; what rounding puts beyond is let pass.
fn share(field: &str, value: f64) -> Result<(), Fault> {
    finite(field, value)?;
    match (-1e-6..=1.0 + 1e-6).contains(&value) {
        true => Ok(()),
        false => fault(field, format!("{value} is not between 0 and 1")),
    }
}

fn check_edit(edit: &Edit, total: usize) -> Result<(), Fault> {
    let end = match edit {
        Edit::Insert { .. } => total + 1,
        _ => total,
    };
    match edit.position() {
        Some(position) if position >= end => {
            return fault("position", format!("{position}, but base and continuation are {total} tokens"));
        }
        _ => {}
    }
    match *edit {
        Edit::Embedding {
            change:
                EmbeddingChange::Noise { strength, .. }
                | EmbeddingChange::Direction { strength, .. }
                | EmbeddingChange::Towards { strength, .. },
            ..
        } => finite("change.strength", f64::from(strength)),
        Edit::Lesion { action: Action::Scale { factor }, .. } => finite("action.factor", f64::from(factor)),
        Edit::Lesion { action: Action::Noise { strength, .. }, .. } => finite("action.strength", f64::from(strength)),
        _ => Ok(()),
    }
}

fn check_implication(implication: &Implication) -> Result<(), Fault> {
    let i = implication;
    for (name, length) in [("set", i.set.len()), ("controls", i.controls.len()), ("effects", i.effects.len())] {
        bounded(&format!("implication.{name}"), length, MAX_ROWS)?;
    }
    finite("implication.necessity", i.necessity)?;
    finite("implication.sufficiency", i.sufficiency)?;
    finite("implication.emergence", i.emergence.unwrap_or(0.0))?;
    for (index, &control) in i.controls.iter().enumerate() {
        finite(&format!("implication.controls[{index}]"), control)?;
    }
    for (index, effect) in i.effects.iter().enumerate() {
        finite(&format!("implication.effects[{index}].necessity"), effect.necessity)?;
        finite(&format!("implication.effects[{index}].sufficiency"), effect.sufficiency)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::edit::{Component, Matrix};

    /// A small valid case, for the tests of every room that keeps cases.
    pub(crate) fn example() -> Case {
        let mut case = Case {
            schema_version: SCHEMA_VERSION,
            id: String::new(),
            model: ModelRef { name: "builtin:dense".into(), fingerprint: "ab".repeat(32), tokenizer: None },
            base: vec![1, 2, 3],
            continuation: vec![4, 5],
            edits: vec![
                Edit::Replace { position: 1, id: 9 },
                Edit::Insert { position: 5, id: 7 },
                Edit::Embedding { position: 2, change: EmbeddingChange::Noise { seed: 3, strength: 0.1 } },
                Edit::Lesion { component: Component::Head { layer: 1, head: 2 }, action: Action::Scale { factor: 2.0 } },
            ],
            verdict: Verdict {
                oracle: OracleKind::Divergence,
                score: 0.8,
                threshold: 0.3,
                margin: 0.5,
                noise_floor: 1e-4,
                controls: vec![0.1, 0.2],
                p_value: 1.0 / 3.0,
            },
            control_seed: 1,
            expectation: Expectation::Reproduces,
            minimisation: None,
            implication: None,
            lineage: Lineage { seed: 1, evaluation: 2, mutators: vec!["tokens".into()], parent: "a".into() },
            top_before: vec![TokenProbability { id: 1, text: "x".into(), probability: 0.5 }],
            top_after: vec![],
            comment: Comment::default(),
        };
        case.id = case.compute_id();
        case
    }

    /// The error of reading the example after `change`, with the file's name removed.
    fn error(text: &str) -> String {
        let error = Case::parse(Path::new("dir/bad.json"), text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error.strip_prefix("dir/bad.json: ").unwrap_or_else(|| panic!("no file name in {error}")).to_string()
    }

    fn changed(pointer: &str, json: &str) -> String {
        let mut value = serde_json::to_value(example()).unwrap();
        *value.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = serde_json::from_str(json).unwrap();
        value.to_string()
    }

    #[test]
    fn a_field_that_is_wrong_is_named() {
        let long = serde_json::to_string(&vec![0u32; MAX_IDS + 1]).unwrap();
        for (pointer, json, expected) in [
            ("/schema_version", "2", "schema_version: 2 is newer than this program"),
            ("/schema_version", "0", "schema_version: 0 is no version"),
            ("/schema_version", "\"1\"", "schema_version: invalid type"),
            ("/schema_version", "-1", "schema_version: invalid value"),
            ("/id", "\"0000000000000000\"", "id: does not match the content"),
            ("/id", "\"../../etc/passwd\"", "id: does not match the content"),
            ("/base", "[]", "base: empty"),
            ("/base", "[1,-2]", "base[1]: invalid value"),
            ("/base", "[4294967296]", "base[0]: invalid value"),
            ("/base", long.as_str(), "base: 65537 entries"),
            ("/continuation", long.as_str(), "continuation: 65537 entries"),
            ("/edits/0/position", "5", "edits[0].position: 5, but"),
            ("/edits/0/position", "18446744073709551615", "edits[0].position: 18446744073709551615, but"),
            ("/edits/0/position", "18446744073709551616", "edits[0]"),
            ("/edits/1/position", "6", "edits[1].position: 6, but"),
            ("/edits/2/change/strength", "null", "edits[2]"),
            ("/edits/2/change/strength", "1e300", "edits[2].change.strength: inf"),
            ("/edits/3/action/factor", "-1e39", "edits[3].action.factor: -inf"),
            ("/edits/3/component", "\"L1.tail\"", "edits[3]"),
            ("/edits/0/edit", "\"explode\"", "edits[0]"),
            ("/verdict/score", "null", "verdict.score: invalid type: null"),
            ("/verdict/noise_floor", "-1", "verdict.noise_floor: -1 is negative"),
            ("/verdict/p_value", "1.5", "verdict.p_value: 1.5 is not between"),
            ("/verdict/controls", "[0.1,null]", "verdict.controls[1]: invalid type"),
            ("/verdict/oracle", "\"delphi\"", "verdict.oracle: unknown variant"),
            ("/top_before/0/probability", "2", "top_before[0].probability: 2 is not between"),
            (
                "/minimisation",
                "{\"calls\":1,\"elements_before\":1,\"elements_after\":2,\"one_minimal\":true}",
                "minimisation.elements_after",
            ),
            ("/implication", "{}", "implication: missing field"),
            ("/model", "[]", "model: invalid length"),
            ("/comment", "\"x\"", "comment: invalid type"),
        ] {
            let error = error(&changed(pointer, json));
            assert!(error.starts_with(expected), "{pointer} = {}: {error}", &json[..json.len().min(40)]);
        }
    }

    #[test]
    fn text_that_is_no_case_is_refused() {
        let good = serde_json::to_string(&example()).unwrap();
        let controls = format!("{:?}", vec![0; MAX_CONTROLS + 1]);
        for (text, expected) in [
            (String::new(), "(top level)"),
            ("{}".into(), "(top level): missing field `schema_version`"),
            ("[1]".into(), ""),
            ("null".into(), "(top level)"),
            ("\u{0}\u{1b}[2J".into(), "(top level)"),
            ("[".repeat(100_000), ""),
            (format!("{{\"schema_version\":1,\"x\":{}", "[".repeat(100_000)), "x"),
            (good.replacen("\"score\":0.8", "\"score\":NaN", 1), "verdict"),
            (good.replacen("\"score\":0.8", "\"score\":1e999", 1), "verdict"),
            (good.replacen("[0.1,0.2]", &controls, 1), "verdict.controls: 65537 entries"),
            (good.replacen("\"edit\":\"replace\"", "\"edit\":\"replace\",\"x\":1", 1), "edits[0]"),
            (good.replacen("{\"schema", "{\"extra\":1,\"schema", 1), "extra: unknown field"),
            (good.replacen("\"continuation\"", "\"base\":[1],\"continuation\"", 1), "(top level): duplicate field `base`"),
            (format!("{good} {good}"), "(end of file)"),
        ] {
            let error = error(&text);
            assert!(error.starts_with(expected), "{}: {error}", &text[..text.len().min(60)]);
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let good = serde_json::to_string(&example()).unwrap();
        for cut in 0..good.len() {
            error(&good[..cut]);
        }
    }

    #[test]
    fn an_invalid_case_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut case = example();
        case.verdict.score = f64::NAN;
        assert!(case.write(dir.path()).unwrap_err().to_string().contains("verdict.score: NaN"));
        case.verdict.score = 1.0;
        case.base.push(1);
        assert!(case.write(dir.path()).unwrap_err().to_string().contains("id: does not match"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_id_is_of_what_is_replayed() {
        let case = example();
        let check = |change: &dyn Fn(&mut Case), same: bool| {
            let mut other = case.clone();
            change(&mut other);
            assert_eq!(other.compute_id() == case.id, same);
        };
        check(&|c| c.verdict.score = 2.0, true);
        check(&|c| c.comment.title = "t".into(), true);
        check(&|c| c.model.name = "elsewhere".into(), true);
        check(&|c| c.model.fingerprint.push('0'), false);
        check(&|c| c.base = vec![1, 2, 4], false);
        // A token moved over the border is another trial.
        check(&|c| (c.base, c.continuation) = (vec![1, 2, 3, 4], vec![5]), false);
        check(&|c| c.edits.truncate(1), false);
        check(&|c| c.verdict.oracle = OracleKind::Echo, false);
        // Frozen: ids are file names in the corpus, and may not change with the program.
        assert_eq!(case.id, "980d14bd0dd2cf20");
    }

    fn edits(total: usize) -> impl Strategy<Value = Vec<Edit>> {
        let strength = -10.0f32..10.0;
        let change = prop_oneof![
            (any::<u64>(), strength.clone()).prop_map(|(seed, strength)| EmbeddingChange::Noise { seed, strength }),
            (any::<u32>(), strength.clone()).prop_map(|(id, strength)| EmbeddingChange::Towards { id, strength }),
            (any::<u32>(), any::<u32>(), strength.clone()).prop_map(|(from, to, strength)| EmbeddingChange::Direction {
                from,
                to,
                strength
            }),
        ];
        let action = prop_oneof![
            Just(Action::Zero),
            Just(Action::Mean),
            strength.clone().prop_map(|factor| Action::Scale { factor }),
            (any::<u64>(), strength).prop_map(|(seed, strength)| Action::Noise { seed, strength }),
        ];
        let component = prop_oneof![
            Just(Component::Embed),
            (0..99usize, 0..99usize).prop_map(|(layer, head)| Component::Head { layer, head }),
            (0..99usize, 0..99usize).prop_map(|(layer, out)| Component::Weight { layer, matrix: Matrix::Down, out, input: 7 }),
        ];
        let edit = prop_oneof![
            (0..total, any::<u32>()).prop_map(|(position, id)| Edit::Replace { position, id }),
            (0..=total, any::<u32>()).prop_map(|(position, id)| Edit::Insert { position, id }),
            (0..total).prop_map(|position| Edit::Delete { position }),
            (0..total, change).prop_map(|(position, change)| Edit::Embedding { position, change }),
            (component, action).prop_map(|(component, action)| Edit::Lesion { component, action }),
        ];
        prop::collection::vec(edit, 0..8)
    }

    /// Floats of few digits: without its feature `float_roundtrip`, serde_json reads those of many digits
    /// to within one unit in the last place only.
    fn eighths(number: i64) -> f64 {
        number as f64 / 8.0
    }

    prop_compose! {
        fn cases()(base in prop::collection::vec(any::<u32>(), 1..20), continuation in prop::collection::vec(any::<u32>(), 0..20))
            (edits in edits(base.len() + continuation.len()), base in Just(base), continuation in Just(continuation),
             score in (-1_000_000_000i64..1_000_000_000).prop_map(eighths), p_value in (0i64..=8).prop_map(eighths), seed in any::<u64>(), text in ".*",
             controls in prop::collection::vec((-8000i64..8000).prop_map(eighths), 0..10)) -> Case {
            let mut case = example();
            (case.base, case.continuation, case.edits, case.control_seed) = (base, continuation, edits, seed);
            (case.verdict.score, case.verdict.p_value, case.verdict.controls) = (score, p_value, controls);
            (case.comment.title, case.lineage.parent) = (text.clone(), text);
            case.id = case.compute_id();
            case
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read_again(case in cases()) {
            let dir = tempfile::tempdir().unwrap();
            let path = case.write(dir.path()).unwrap();
            prop_assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("{}.json", case.id));
            prop_assert_eq!(&Case::read(&path).unwrap(), &case);
            // Reading and writing again changes no byte.
            let bytes = std::fs::read(&path).unwrap();
            Case::read(&path).unwrap().write(dir.path()).unwrap();
            prop_assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }

        #[test]
        fn damaged_bytes_never_panic(at in 0usize..4096, byte in any::<u8>()) {
            let mut bytes = serde_json::to_vec(&example()).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Case::parse(Path::new("bad.json"), &bytes);
        }
    }
}
