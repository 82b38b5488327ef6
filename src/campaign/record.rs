//! The records of a campaign's journal.

use serde::{Deserialize, Serialize};

use super::events::Event;
use crate::case::Lineage;
use crate::edit::{Edit, Trial};
use crate::oracle::Verdict;

/// One record of `journal.log`. Records of earlier versions are read too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Record {
    /// A trial failed inside a batch.
    Raw {
        /// Prompt ids before the edits; empty in journals of versions that did not keep them.
        #[serde(default)]
        base: Vec<u32>,
        /// Ids of the teacher-forced continuation before the edits; empty likewise.
        #[serde(default)]
        continuation: Vec<u32>,
        /// The edits of the trial.
        edits: Vec<Edit>,
        /// The verdict inside the batch.
        verdict: Verdict,
        /// Where the trial came from.
        lineage: Lineage,
    },
    /// It was judged again, alone.
    Confirmed {
        /// The verdict alone.
        verdict: Verdict,
        /// True if it fails alone.
        holds: bool,
    },
    /// It was minimized.
    #[serde(rename = "minimised")]
    Minimized {
        /// The edits that are left.
        edits: Vec<Edit>,
        /// The verdict of what is left.
        verdict: Verdict,
    },
    /// It became a case.
    Case {
        /// The case's id, which is also the name of its file.
        id: String,
    },
}

impl Record {
    /// Returns the record of an event; `None` for one that is not kept.
    pub fn from_event(event: &Event) -> Option<Self> {
        match event {
            Event::Round(_) => None,
            Event::Raw { trial, verdict, lineage } => Some(Self::Raw {
                base: trial.base.to_vec(),
                continuation: trial.continuation.to_vec(),
                edits: trial.edits.clone(),
                verdict: verdict.clone(),
                lineage: lineage.clone(),
            }),
            Event::Confirmed { verdict, holds } => {
                Some(Self::Confirmed { verdict: verdict.clone(), holds: *holds })
            }
            Event::Minimized { finding } => Some(Self::Minimized {
                edits: finding.trial.edits.clone(),
                verdict: finding.verdict.clone(),
            }),
            Event::Case(case) => Some(Self::Case { id: case.id.clone() }),
        }
    }

    /// Returns the trial of a raw record, to be looked at or judged again; `None` for other records
    /// and where the prompt was not kept.
    pub fn trial(&self) -> Option<Trial> {
        match self {
            Self::Raw { base, continuation, edits, .. } if !base.is_empty() => {
                Some(Trial::new(&base[..], &continuation[..]).with_edits(edits.clone()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::OracleKind;

    #[test]
    fn a_raw_record_carries_its_trial() {
        let trial =
            Trial::new([1, 2, 3], [4]).with_edits(vec![Edit::Replace { position: 1, id: 9 }]);
        let verdict = Verdict::new(OracleKind::Divergence, 0.5, &[0.0; 8], 1e-6);
        let lineage = Lineage { seed: 1, evaluation: 0, mutators: vec![], parent: "a".into() };
        let event = Event::Raw { trial: trial.clone(), verdict, lineage };
        let record = Record::from_event(&event).unwrap();
        let json = serde_json::to_string(&record).unwrap();
        let read: Record = serde_json::from_str(&json).unwrap();
        assert_eq!((&read, read.trial()), (&record, Some(trial)));
        assert_eq!(Record::from_event(&Event::Round(Default::default())), None);
    }

    #[test]
    fn raw_records_of_earlier_versions_are_read() {
        let old = r#"{"event":"raw","edits":[{"edit":"replace","position":18,"id":3843}],
            "verdict":{"oracle":"divergence","score":0.18,"threshold":0.17,"margin":0.01,
            "noise_floor":1e-6,"controls":[0.02,0.03],"p_value":0.05},
            "lineage":{"seed":1,"evaluation":67,"mutators":["replace"],"parent":"sea-4"}}"#;
        let read: Record = serde_json::from_str(old).unwrap();
        assert!(matches!(&read, Record::Raw { edits, .. } if edits.len() == 1));
        assert_eq!(read.trial(), None);
    }
}
