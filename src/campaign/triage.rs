//! Raw findings: which are judged, which are followed up next, which are known already.

use std::collections::{BTreeSet, VecDeque};

use crate::case::Lineage;
use crate::edit::Trial;
use crate::oracle::{OracleKind, Verdict};
use crate::pipeline::signature;

/// A trial that failed against its controls inside a batch.
pub(super) struct RawFinding {
    pub trial: Trial,
    pub verdict: Verdict,
    pub lineage: Lineage,
}

type Signature = BTreeSet<String>;

/// Raw findings not yet followed up, and the signatures that need no further look.
#[derive(Default)]
pub(super) struct Triage {
    pending: VecDeque<RawFinding>,
    judged: BTreeSet<(OracleKind, Signature)>,
    /// Signatures of findings, in the order they were made.
    known: Vec<(OracleKind, Signature)>,
}

impl Triage {
    /// Returns whether a trial is to be judged, and notes that it was: no signature is judged
    /// twice.
    pub fn admit(&mut self, kind: OracleKind, trial: &Trial) -> bool {
        self.judged.insert((kind, signature(trial)))
    }

    /// Returns whether the trial contains what a known finding of the oracle is made of.
    pub fn is_known(&self, kind: OracleKind, trial: &Trial) -> bool {
        let signature = signature(trial);
        self.known.iter().any(|(k, known)| *k == kind && known.is_subset(&signature))
    }

    /// Notes a finding: trials that contain it are not judged again.
    pub fn know(&mut self, kind: OracleKind, trial: &Trial) {
        self.known.push((kind, signature(trial)));
    }

    pub fn push(&mut self, finding: RawFinding) {
        self.pending.push_back(finding);
    }

    pub fn clear(&mut self) {
        self.pending.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Removes the raw finding to follow up, passing over those that a known finding explains.
    pub fn next(&mut self) -> Option<RawFinding> {
        loop {
            let next = self.strongest()?;
            if !self.is_known(next.verdict.oracle, &next.trial) {
                return Some(next);
            }
        }
    }

    /// Removes the raw finding of the oracle with the fewest findings so far, so that one easy kind
    /// does not crowd out the others; of those the one that stands out most, relative to its
    /// threshold.
    fn strongest(&mut self) -> Option<RawFinding> {
        let found = |kind: OracleKind| self.known.iter().filter(|(k, _)| *k == kind).count();
        let excess = |v: &Verdict| v.margin / v.threshold.abs().max(f64::MIN_POSITIVE);
        let better = |a: &Verdict, b: &Verdict| {
            found(b.oracle).cmp(&found(a.oracle)).then(excess(a).total_cmp(&excess(b)))
        };
        let mut best: Option<usize> = None;
        for (i, finding) in self.pending.iter().enumerate() {
            if best.is_none_or(|b| better(&finding.verdict, &self.pending[b].verdict).is_gt()) {
                best = Some(i);
            }
        }
        best.and_then(|i| self.pending.remove(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::Edit;

    fn finding(oracle: OracleKind, id: u32, score: f64) -> RawFinding {
        let trial = Trial::new([1, 2, 3], [4]).with_edits(vec![Edit::Replace { position: 1, id }]);
        let verdict = Verdict::new(oracle, score, &[0.0; 8], 1e-6);
        let lineage = Lineage { seed: 1, evaluation: 0, mutators: vec![], parent: "a".into() };
        RawFinding { trial, verdict, lineage }
    }

    #[test]
    fn the_rarest_oracle_and_the_largest_excess_come_first() {
        let (divergence, echo) = (OracleKind::Divergence, OracleKind::Echo);
        let mut triage = Triage::default();
        for (oracle, id, score) in
            [(divergence, 7, 0.5), (divergence, 8, 0.9), (echo, 9, 20.0), (divergence, 6, 0.7)]
        {
            triage.push(finding(oracle, id, score));
        }
        triage.know(divergence, &finding(divergence, 8, 0.0).trial);
        let mut order = Vec::new();
        while let Some(next) = triage.next() {
            let Edit::Replace { id, .. } = next.trial.edits[0] else { panic!() };
            order.push(id);
        }
        // Token 8 is a known finding's; echo has none yet.
        assert_eq!(order, [9, 6, 7]);
    }

    #[test]
    fn a_signature_is_admitted_once_an_oracle() {
        let mut triage = Triage::default();
        let trial = finding(OracleKind::Echo, 7, 0.0).trial;
        assert!(triage.admit(OracleKind::Echo, &trial));
        assert!(!triage.admit(OracleKind::Echo, &trial));
        assert!(triage.admit(OracleKind::Divergence, &trial));
    }
}
