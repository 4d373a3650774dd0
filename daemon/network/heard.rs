//! What voters said to one question that none of them has answered yet.
//!
//! Owns: when a refusal counts, and whether a try can have had an effect.
//! Invariant: against a word of the others, one voter's refusal never counts.

use super::CallError;
use crate::link::{LinkError, Trouble};
use mictlan::id::PeerId;
use mictlan::wire::Failure;
use std::collections::BTreeMap;
use std::time::Duration;

/// What voters said to one question that none of them has answered.
pub struct Heard {
    /// The last word of each.
    said: BTreeMap<PeerId, Said>,
    last: Option<String>,
    /// No try can have had an effect.
    pub certain: bool,
}

enum Said {
    Refuses(Failure),
    /// This one leads, not who was asked.
    Leads(Option<PeerId>),
}

impl Default for Heard {
    fn default() -> Self {
        Self { said: BTreeMap::new(), last: None, certain: true }
    }
}

impl Heard {
    pub fn hear(&mut self, voter: PeerId, error: LinkError) {
        self.certain &= had_no_effect(&error);
        self.last = Some(error.to_string());
        match (hint(&error), error) {
            (_, LinkError::Refused { why, .. }) => self.said.insert(voter, Said::Refuses(why)),
            (Some(leader), _) => self.said.insert(voter, Said::Leads(leader)),
            (None, _) => self.said.remove(&voter),
        };
    }

    fn refusals(&self) -> impl Iterator<Item = (PeerId, &Failure)> {
        self.said.iter().filter_map(|(voter, said)| match said {
            Said::Refuses(why) => Some((*voter, why)),
            Said::Leads(_) => None,
        })
    }

    /// Behind a refusal stand those who refuse too, and those who say that its author leads.
    pub fn refused_by_most(&self, voters: usize) -> Option<Failure> {
        let behind = |by: PeerId| {
            let agrees = |said: &&Said| match said {
                Said::Refuses(_) => true,
                Said::Leads(leader) => *leader == Some(by),
            };
            self.said.values().filter(agrees).count()
        };
        let found = self.refusals().find(|(by, _)| behind(*by) > voters / 2);
        found.map(|(_, why)| why.clone())
    }

    /// When all were asked: the others say nothing, or cannot be reached.
    pub fn refused_by_all_who_speak(&self) -> Option<Failure> {
        let refuses = |leader: &PeerId| matches!(self.said.get(leader), Some(Said::Refuses(_)));
        let doubted = self.said.values().any(|said| match said {
            Said::Refuses(_) => false,
            Said::Leads(leader) => !leader.as_ref().is_some_and(refuses),
        });
        self.refusals().next().filter(|_| !doubted).map(|(_, why)| why.clone())
    }

    pub fn end<T>(self, waited: Duration) -> Result<T, CallError> {
        if let Some((_, why)) = self.refusals().next() {
            return Err(CallError::Refused(why.clone()));
        }
        Err(CallError::NoVoter { waited, last: self.last.unwrap_or_else(|| "nothing".to_owned()) })
    }
}

/// Whom a voter that does not lead names as the one that does.
pub fn hint(error: &LinkError) -> Option<Option<PeerId>> {
    match error {
        LinkError::FailedHere { why: Trouble::Said(Failure::NotLeader { leader }), .. } => {
            Some(*leader)
        }
        _ => None,
    }
}

/// Whether a try that failed so can have done nothing.
fn had_no_effect(error: &LinkError) -> bool {
    match error {
        LinkError::Refused { .. } => true,
        LinkError::FailedHere { why, .. } => matches!(
            why,
            Trouble::NotReached(_) | Trouble::Said(Failure::NotLeader { .. } | Failure::Busy(_))
        ),
        LinkError::Unknown { .. } => false,
    }
}
