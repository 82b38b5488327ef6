//! Kinds of glitch that are known already and are not to be shown again: `fuzz/ignore.toml`.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::descriptor::{Descriptor, TokenClass, is_kind_of_edit, oracle_of_kind};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::oracle::OracleKind;
use crate::text::escape;

/// A list of kinds and cases that are not shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IgnoreList {
    /// Each entry by itself.
    #[serde(default)]
    pub ignore: Vec<Ignored>,
}

/// One kind, or one case. What is left out may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ignored {
    /// Why, for whoever reads the file.
    #[serde(default)]
    pub reason: String,
    /// The oracle.
    pub oracle: Option<OracleKind>,
    /// The kinds of edits, all of them.
    pub edits: Option<BTreeSet<String>>,
    /// The classes of tokens put in, all of them.
    pub tokens: Option<BTreeSet<TokenClass>>,
    /// The id of a case: that one alone.
    pub case: Option<String>,
}

impl IgnoreList {
    /// Reads a list.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is malformed, and for an entry that would match everything.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let list: Self = toml::from_str(text)
            .map_err(|e| Error::file(path, "ignore", e.message().replace('\n', " ")))?;
        for (at, entry) in list.ignore.iter().enumerate() {
            entry.check().map_err(|message| Error::file(path, format!("ignore[{at}]"), message))?;
        }
        Ok(list)
    }

    /// Returns whether a case is in the list, by its id or by its kind.
    pub fn has(&self, case: &Case) -> bool {
        let kind = Descriptor::of_case(case);
        self.ignore.iter().any(|entry| match &entry.case {
            Some(id) => *id == case.id,
            None => entry.matches(&kind),
        })
    }
}

impl Ignored {
    /// Returns what is wrong with an entry.
    fn check(&self) -> Result<(), String> {
        let by_kind = self.oracle.is_some() || self.edits.is_some() || self.tokens.is_some();
        if !by_kind && self.case.is_none() {
            return Err("names no oracle, edits, tokens or case: it would match everything".into());
        }
        if by_kind && self.case.is_some() {
            return Err("names a case, and a kind: one of them an entry".into());
        }
        match self.edits.iter().flatten().find(|name| !is_kind_of_edit(name)) {
            Some(unknown) => Err(format!("edits: no kind of edit is called `{}`", escape(unknown))),
            None => Ok(()),
        }
    }

    fn matches(&self, kind: &Descriptor) -> bool {
        let edits = |wanted: &BTreeSet<String>| {
            wanted.iter().map(String::as_str).eq(kind.edits.iter().copied())
        };
        self.oracle.is_none_or(|oracle| oracle_of_kind(oracle) == kind.oracle)
            && self.edits.as_ref().is_none_or(edits)
            && self.tokens.as_ref().is_none_or(|tokens| *tokens == kind.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::tests::example;
    use crate::edit::{Edit, Trial};

    #[test]
    fn what_is_left_out_matches_anything() {
        let parse = |text: &str| IgnoreList::parse(text, Path::new("ignore.toml"));
        let trial = Trial::new([1, 2], [3]).with_edits(vec![Edit::Replace { position: 0, id: 9 }]);
        let kind = Descriptor::new(&trial, OracleKind::Echo, &|_| TokenClass::HardlyTrained);
        let matches = |text: &str| parse(text).unwrap().ignore[0].matches(&kind);
        assert!(matches("[[ignore]]\noracle = \"echo\""));
        let loss = Descriptor::new(&trial, OracleKind::LossBlowup, &|_| TokenClass::Ordinary);
        assert!(parse("[[ignore]]\noracle = \"loss_blowup\"").unwrap().ignore[0].matches(&loss));
        assert!(matches("[[ignore]]\nedits = [\"token\"]\ntokens = [\"hardly_trained\"]"));
        assert!(!matches("[[ignore]]\noracle = \"divergence\"\nedits = [\"token\"]"));
        assert!(!matches("[[ignore]]\nedits = [\"token\", \"head\"]"));
        let case = parse("[[ignore]]\ncase = \"0123\"\nreason = \"old\"").unwrap();
        let named = |id: &str| case.has(&Case { id: id.into(), ..example() });
        assert!(named("0123") && !named("0124"));
        for (text, expect) in [
            ("[[ignore]]\nreason = \"all\"", "ignore.toml: ignore[0]: names no oracle"),
            ("[[ignore]]\noracel = \"echo\"", "ignore.toml: ignore: unknown field `oracel`"),
            (
                "[[ignore]]\ncase = \"01\"\noracle = \"echo\"",
                "ignore.toml: ignore[0]: names a case",
            ),
            ("[[ignore]]\nedits = [\"tokn\"]", "ignore.toml: ignore[0]: edits: no kind of edit"),
            ("[[ignore]]\noracle = \"vibes\"", "ignore.toml: ignore: unknown variant `vibes`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{error}");
        }
    }
}
