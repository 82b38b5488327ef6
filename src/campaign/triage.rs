//! Raw findings: which are judged, which are followed up next, which are known already.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::config::Search;
use super::summary::KindCount;
use crate::case::Lineage;
use crate::edit::Trial;
use crate::oracle::{OracleKind, Verdict};
use crate::pipeline::signature;
use crate::species::Descriptor;

/// Raw findings of one kind that are kept to be followed up; those that stand out most.
const PENDING_OF_A_KIND: usize = 16;

/// Findings of one kind that are followed up; further ones are counted.
pub const FOLLOWED_OF_A_KIND: u64 = 3;

/// A trial that failed against its controls inside a batch.
pub(super) struct RawFinding {
    pub trial: Trial,
    pub verdict: Verdict,
    pub lineage: Lineage,
    pub kind: Descriptor,
}

impl RawFinding {
    /// Returns by how much it stands out, relative to its threshold.
    fn excess(&self) -> f64 {
        self.verdict.excess_ratio()
    }
}

type Signature = BTreeSet<String>;

/// Counts of one kind.
#[derive(Default)]
struct Count {
    judged: u64,
    raw: u64,
    /// Raw findings after enough of the kind were followed up.
    further: u64,
    /// Those of them that were confirmed or not, and those that were.
    sampled: u64,
    held: u64,
}

/// Raw findings not yet followed up, and what needs no further look.
#[derive(Default)]
pub(super) struct Triage {
    search: Search,
    pending: Vec<RawFinding>,
    judged: BTreeSet<(OracleKind, Signature)>,
    /// Signatures of findings, in the order they were made.
    known: Vec<(OracleKind, Signature)>,
    /// The kinds of minimized findings, and how many there are of each.
    kinds: BTreeMap<Descriptor, u64>,
    /// The kinds that were judged.
    counts: BTreeMap<Descriptor, Count>,
}

impl Triage {
    pub fn new(search: Search) -> Self {
        Self { search, ..Self::default() }
    }

    /// Returns whether a trial is to be judged, and notes that it was: no signature is judged
    /// twice.
    pub fn admit(&mut self, oracle: OracleKind, trial: &Trial, kind: &Descriptor) -> bool {
        let new = self.judged.insert((oracle, signature(trial)));
        if new {
            self.counts.entry(kind.clone()).or_default().judged += 1;
        }
        new
    }

    /// Returns how often a kind was judged, in powers of two: what was judged less comes first; 0
    /// in a search by score.
    pub fn familiarity(&self, kind: &Descriptor) -> u32 {
        self.count(kind).map_or(0, |count| u64::BITS - count.judged.leading_zeros())
    }

    /// Returns the number of raw findings of a kind so far; 0 in a search by score, in which each
    /// is worth as much as the first.
    pub fn raw_of(&self, kind: &Descriptor) -> u64 {
        self.count(kind).map_or(0, |count| count.raw)
    }

    /// Returns the counts of a kind; none in a search by score, which knows no kinds.
    fn count(&self, kind: &Descriptor) -> Option<&Count> {
        self.counts.get(kind).filter(|_| self.search == Search::Kinds)
    }

    /// Returns whether the trial contains what a known finding of the oracle is made of.
    pub fn is_known(&self, oracle: OracleKind, trial: &Trial) -> bool {
        let signature = signature(trial);
        self.known.iter().any(|(k, known)| *k == oracle && known.is_subset(&signature))
    }

    /// Notes a finding: trials that contain it are not judged again.
    pub fn know(&mut self, oracle: OracleKind, trial: &Trial, kind: Descriptor) {
        self.known.push((oracle, signature(trial)));
        *self.kinds.entry(kind).or_default() += 1;
    }

    /// Returns whether enough findings of a kind were followed up.
    pub fn is_enough(&self, kind: &Descriptor) -> bool {
        self.search == Search::Kinds && self.explained(kind) >= FOLLOWED_OF_A_KIND
    }

    /// Keeps a raw finding to be followed up. Of a kind of which enough were followed up it is only
    /// counted; returns whether it belongs to the sample by which that count is checked, the first
    /// such finding, the second, the fourth, the eighth, and so on.
    pub fn push(&mut self, finding: RawFinding) -> bool {
        let enough = self.is_enough(&finding.kind);
        let count = self.counts.entry(finding.kind.clone()).or_default();
        count.raw += 1;
        if enough {
            count.further += 1;
            return count.further.is_power_of_two();
        }
        let alike = |other: &&RawFinding| other.kind == finding.kind;
        let kept = self.pending.iter().filter(alike).count();
        if self.search == Search::Kinds && kept == PENDING_OF_A_KIND {
            let of_kind = self.pending.iter().enumerate().filter(|(_, f)| f.kind == finding.kind);
            let weakest = of_kind.min_by(|a, b| a.1.excess().total_cmp(&b.1.excess()));
            match weakest.map(|(at, weakest)| (at, weakest.excess())) {
                Some((at, excess)) if excess < finding.excess() => drop(self.pending.remove(at)),
                _ => return false,
            }
        }
        self.pending.push(finding);
        false
    }

    /// Notes whether a finding of the sample of its kind held against new controls.
    pub fn sampled(&mut self, kind: &Descriptor, holds: bool) {
        let count = self.counts.entry(kind.clone()).or_default();
        count.sampled += 1;
        count.held += u64::from(holds);
    }

    pub fn clear(&mut self) {
        self.pending.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Removes the raw finding to follow up: the one least like what is known. What a known finding
    /// explains, or is of a kind of which enough were followed up, is passed over.
    pub fn next(&mut self) -> Option<RawFinding> {
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|raw| {
            !self.is_enough(&raw.kind) && !self.is_known(raw.verdict.oracle, &raw.trial)
        });
        let best = (pending.iter().enumerate())
            .max_by(|(i, a), (j, b)| self.compare(a, b).then(j.cmp(i)))
            .map(|(at, _)| at);
        self.pending = pending;
        best.map(|at| self.pending.remove(at))
    }

    /// Returns the raw findings by kind, those with most of them first. What a known kind explains
    /// counts as one of it.
    pub fn kinds(&self) -> Vec<KindCount> {
        let mut raw: BTreeMap<&Descriptor, [u64; 3]> =
            self.kinds.keys().map(|kind| (kind, [0; 3])).collect();
        for (kind, count) in self.counts.iter().filter(|(_, count)| count.raw > 0) {
            let known = self.kinds.get_key_value(kind).map(|(known, _)| known);
            let explaining = || self.kinds.keys().find(|known| known.explains(kind));
            let of_kind = raw.entry(known.or_else(explaining).unwrap_or(kind)).or_default();
            let counts = [count.raw, count.sampled, count.held];
            of_kind.iter_mut().zip(counts).for_each(|(sum, more)| *sum += more);
        }
        let count = |(kind, [raw, sampled, held]): (&Descriptor, [u64; 3])| KindCount {
            kind: kind.to_string(),
            raw,
            sampled,
            held,
            minimized: self.kinds.get(kind).copied().unwrap_or(0),
        };
        let mut kinds: Vec<KindCount> = raw.into_iter().map(count).collect();
        kinds.sort_by(|a, b| b.raw.cmp(&a.raw).then_with(|| a.kind.cmp(&b.kind)));
        kinds
    }

    /// Compares two raw findings; the larger is followed up first: few findings of its kind, far
    /// from any known kind, few edits, a large excess. In a search by score: few findings of its
    /// oracle, a large excess.
    fn compare(&self, a: &RawFinding, b: &RawFinding) -> Ordering {
        if self.search == Search::Score {
            let found = |oracle| self.known.iter().filter(|(other, _)| *other == oracle).count();
            return (found(b.verdict.oracle).cmp(&found(a.verdict.oracle)))
                .then_with(|| a.excess().total_cmp(&b.excess()));
        }
        let distance = |raw: &RawFinding| {
            self.kinds.keys().map(|known| known.distance(&raw.kind)).fold(1.0, f64::min)
        };
        (self.explained(&b.kind).cmp(&self.explained(&a.kind)))
            .then_with(|| distance(a).total_cmp(&distance(b)))
            .then_with(|| b.trial.edits.len().cmp(&a.trial.edits.len()))
            .then_with(|| a.excess().total_cmp(&b.excess()))
    }

    /// Returns the number of findings whose kinds explain one of this kind.
    fn explained(&self, kind: &Descriptor) -> u64 {
        self.kinds.iter().filter(|(known, _)| known.explains(kind)).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::summary::kinds_seen;
    use super::*;
    use crate::edit::Edit;
    use crate::species::TokenClass;

    fn kind(trial: &Trial, oracle: OracleKind) -> Descriptor {
        let class = |id| if id < 10 { TokenClass::Ordinary } else { TokenClass::HardlyTrained };
        Descriptor::new(trial, oracle, &class)
    }

    fn finding(oracle: OracleKind, id: u32, score: f64) -> RawFinding {
        let trial = Trial::new([1, 2, 3], [4]).with_edits(vec![Edit::Replace { position: 1, id }]);
        let verdict = Verdict::new(oracle, score, &[0.0; 8], 1e-6);
        let lineage = Lineage { seed: 1, evaluation: 0, mutators: vec![], parent: "a".into() };
        RawFinding { kind: kind(&trial, oracle), trial, verdict, lineage }
    }

    fn drain(triage: &mut Triage) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(next) = triage.next() {
            let Edit::Replace { id, .. } = next.trial.edits[0] else { panic!() };
            order.push(id);
        }
        order
    }

    #[test]
    fn what_is_least_like_what_is_known_comes_first() {
        let (divergence, echo) = (OracleKind::Divergence, OracleKind::Echo);
        let mut triage = Triage::default();
        for (oracle, id, score) in
            [(divergence, 7, 0.5), (divergence, 8, 0.9), (divergence, 20, 0.1), (echo, 21, 20.0)]
        {
            triage.push(finding(oracle, id, score));
        }
        triage.push(finding(divergence, 6, 0.7));
        let known = finding(divergence, 8, 0.0);
        triage.know(divergence, &known.trial, known.kind);
        // Token 8 is a known finding's. The echo of a hardly trained token shares nothing with it
        // but the kind of edit, nor does such a token under divergence the class.
        assert_eq!(drain(&mut triage), [21, 20, 6, 7]);
    }

    #[test]
    fn enough_of_a_kind_are_followed_up_and_the_others_counted() {
        let echo = OracleKind::Echo;
        let mut triage = Triage::default();
        for id in 20..60 {
            triage.push(finding(echo, id, f64::from(id)));
        }
        let twin = finding(echo, 99, 1.0).kind;
        assert_eq!(triage.raw_of(&twin), 40);
        let mut followed = Vec::new();
        while let Some(next) = triage.next() {
            let Edit::Replace { id, .. } = next.trial.edits[0] else { panic!() };
            followed.push(id);
            triage.know(echo, &next.trial, next.kind);
        }
        assert_eq!(followed, [59, 58, 57]);
        assert!(triage.is_enough(&twin) && triage.is_empty());
        // Of those that follow, the first, the second, the fourth and the eighth are a sample.
        let sample: Vec<u32> = (70..82).filter(|id| triage.push(finding(echo, *id, 1.0))).collect();
        assert_eq!((sample, triage.is_empty()), (vec![70, 71, 73, 77], true));
        triage.sampled(&twin, true);
        triage.sampled(&twin, false);
        let [count] = &triage.kinds()[..] else { panic!() };
        assert_eq!((count.raw, count.sampled, count.held), (52, 2, 1));
        assert!(!triage.is_enough(&finding(echo, 3, 1.0).kind));
        // An ordinary token is another kind; one beside a hardly trained token is not.
        triage.push(finding(echo, 3, 1.0));
        let mut both = finding(echo, 20, 1.0);
        both.trial.edits.push(Edit::Replace { position: 0, id: 3 });
        both.kind = kind(&both.trial, echo);
        triage.push(both);
        let counted: Vec<(u64, u64)> =
            triage.kinds().iter().map(|kind| (kind.raw, kind.minimized)).collect();
        assert_eq!(counted, [(53, 3), (1, 0)]);
        // A kind that only minimizing led to has no raw findings, and was not seen.
        let mut kinds = triage.kinds();
        assert_eq!(kinds_seen(&kinds), 2);
        kinds[1].raw = 0;
        assert_eq!(kinds_seen(&kinds), 1);
    }

    #[test]
    fn a_search_by_score_follows_up_what_scores_most_of_the_rarest_oracle() {
        let (divergence, echo) = (OracleKind::Divergence, OracleKind::Echo);
        let mut triage = Triage::new(Search::Score);
        for (oracle, id, score) in
            [(divergence, 7, 0.5), (divergence, 8, 0.9), (echo, 9, 20.0), (divergence, 6, 0.7)]
        {
            triage.push(finding(oracle, id, score));
        }
        let known = finding(divergence, 8, 0.0);
        triage.know(divergence, &known.trial, known.kind.clone());
        assert_eq!((triage.familiarity(&known.kind), triage.raw_of(&known.kind)), (0, 0));
        // Token 8 is a known finding's; echo has none yet.
        assert_eq!(drain(&mut triage), [9, 6, 7]);
    }

    #[test]
    fn a_signature_is_admitted_once_an_oracle() {
        let mut triage = Triage::default();
        let RawFinding { trial, kind, .. } = finding(OracleKind::Echo, 7, 0.0);
        assert_eq!(triage.familiarity(&kind), 0);
        assert!(triage.admit(OracleKind::Echo, &trial, &kind));
        assert!(!triage.admit(OracleKind::Echo, &trial, &kind));
        assert!(triage.admit(OracleKind::Divergence, &trial, &kind));
        assert_eq!(triage.familiarity(&kind), 2);
    }
}
