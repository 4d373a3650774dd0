//! What a voter asks the others at each start, before it takes part: its directory may be an older
//! copy, which has forgotten what it promised and acknowledged.
//!
//! Owns: the rule when enough is known; the file `place`, by which a directory that was copied is
//! told from the one that this voter used last.
//! Never: takes a voter that is merely behind for one that forgot: neither loses anything by it.
//! Invariant: who passed has promised no less than the newest vote it was told of, and votes for
//! nobody, itself included, whose log ends before the ones it was told of.
//!
//! Why that is enough: a vote or an entry was on its sender's disk before this voter was asked for
//! it, and what was ordered is on a quorum. Of each quorum with this voter one other is among those
//! who answered (`enough`), so it is told of it. Where too few can answer, nobody can know: a copy
//! then waits; what looks like the directory used last waits for `PATIENCE`, and goes on with a
//! majority, so that two of three start by themselves when the third one's disk is dead.

use super::guard::enough;
use super::{LogId, Vote};
use crate::store::durable::{self, DiskError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// For whom the rest waits once a majority is there. Machines of one site do not boot at once;
/// longer would make each restart long while one voter is away.
pub const PATIENCE: Duration = Duration::from_secs(10);
const FILE_MODE: u32 = 0o600;
const PLACE: &str = "place";

/// Who votes, two sets while that changes, and the entry that says so.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Voters {
    pub since: Option<LogId>,
    pub sets: Vec<BTreeSet<u64>>,
}

/// What one voter has on its disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Known {
    /// Its log is not complete: it may have forgotten more.
    pub lacks: bool,
    pub vote: Vote,
    pub last: Option<LogId>,
    pub applied: Option<LogId>,
    pub voters: Voters,
}

/// What a voter may do, as far as it knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing: too few have answered.
    Ask,
    /// Nothing until it has promised this too.
    Promise(Vote),
    /// Follow, and vote for who has this or more.
    Behind(LogId),
    /// All: its log ends where the others' do, or after.
    Whole,
}

pub struct Recall {
    me: u64,
    /// It is not the directory that was used last: no waiting makes it safe.
    copy: bool,
    /// As the log said at the start.
    voters: Voters,
    heard: BTreeMap<u64, (Instant, Known)>,
    /// Since when those heard are a majority with this voter.
    majority: Option<Instant>,
    passed: bool,
}

impl Recall {
    pub fn new(me: u64, copy: bool, voters: Voters) -> Self {
        Self { me, copy, voters, heard: BTreeMap::new(), majority: None, passed: false }
    }

    /// Whether there is anybody to ask.
    pub fn has_others(&self) -> bool {
        !self.others(&Voters::default()).is_empty()
    }

    pub fn is_copy(&self) -> bool {
        self.copy
    }

    /// The newest that anyone says of who votes.
    fn newest_voters<'a>(&'a self, own: &'a Voters) -> &'a Voters {
        let told = self.heard.values().map(|(_, known)| &known.voters);
        let all = told.chain([own]).filter(|voters| !voters.sets.is_empty());
        all.max_by_key(|voters| voters.since).unwrap_or(&self.voters)
    }

    /// Who is to be asked.
    pub fn others(&self, own: &Voters) -> BTreeSet<u64> {
        let newest = self.newest_voters(own);
        let all = self.voters.sets.iter().chain(&newest.sets).flatten().copied();
        all.filter(|id| *id != self.me).collect()
    }

    /// What a voter had when it answered first is what counts: all that this voter forgot came
    /// before. The rest only says that it still answers, and what of it is ordered by now.
    pub fn hear(&mut self, from: u64, known: Known, now: Instant) {
        match self.heard.get_mut(&from) {
            Some((at, first)) if !first.lacks => {
                *at = now;
                first.applied = first.applied.max(known.applied.min(first.last));
                first.voters = known.voters;
            }
            _ => drop(self.heard.insert(from, (now, known))),
        }
    }

    /// What this voter may do now, which has `own`.
    pub fn judge(&mut self, own: &Known, now: Instant) -> Verdict {
        self.passed = self.passed || self.may_pass(&own.voters, now);
        if !self.passed {
            return Verdict::Ask;
        }
        let votes = self.heard.values().map(|(_, known)| known.vote);
        if let Some(newest) = votes.max_by_key(order).filter(|v| order(v) > order(&own.vote)) {
            let (term, of) = (newest.leader_id.term, newest.leader_id.node_id);
            // Its own of before: it must not stand for election in that term again.
            let own_again = Vote::new(term.saturating_add(1), 0);
            return Verdict::Promise(if of == self.me { own_again } else { Vote::new(term, of) });
        }
        match self.floor(now) {
            Some(floor) if own.last < Some(floor) => Verdict::Behind(floor),
            _ => Verdict::Whole,
        }
    }

    fn may_pass(&mut self, own: &Voters, now: Instant) -> bool {
        let others = self.others(own);
        if others.is_empty() {
            return true;
        }
        let sets = self.newest_voters(own).sets.clone();
        let sure = self.heard.iter().filter(|(_, (_, known))| !known.lacks);
        if enough(&sets, &sure.map(|(id, _)| *id).collect()) {
            return true;
        }
        let mut here: BTreeSet<u64> = self.heard.keys().copied().collect();
        // Who lost its log has nothing that could be waited for.
        let all = others.is_subset(&here);
        here.insert(self.me);
        let majority = sets.iter().all(|set| set.intersection(&here).count() > set.len() / 2);
        if majority {
            self.majority.get_or_insert(now);
        }
        let waited = self.majority.is_some_and(|since| now - since >= PATIENCE);
        majority && (all || waited) && !self.copy
    }

    /// The end of the longest log it was told of. What was not ordered may go with the one who has
    /// it: it counts no longer than that one answers.
    fn floor(&self, now: Instant) -> Option<LogId> {
        let end = |(at, known): &(Instant, Known)| match now - *at < PATIENCE {
            true => known.last.max(known.applied),
            false => known.applied,
        };
        self.heard.values().filter_map(end).max()
    }
}

/// All votes in order, also of one term; that a vote won adds nothing to the promise.
fn order(vote: &Vote) -> (u64, u64) {
    (vote.leader_id.term, vote.leader_id.node_id)
}

/// Which files these are: a copy of the log's key, which is written once, is born later.
fn place(dir: &Path) -> Result<String, DiskError> {
    let key = dir.join("wal/id");
    let meta = fs::metadata(&key).map_err(|e| DiskError::new("read", &key, e))?;
    let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    // A copy made at once is told by its inode; one made later may have got the old one's again.
    Ok(format!("{} {}\n", meta.ino(), born.map_or(0, |since| since.as_nanos())))
}

fn noted(dir: &Path) -> Result<Option<String>, DiskError> {
    let file = dir.join(PLACE);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(DiskError::new("read", &file, e)),
    }
}

/// Whether `dir` was copied since its voter took part last.
pub fn is_copy(dir: &Path) -> Result<bool, DiskError> {
    let place = place(dir)?;
    Ok(noted(dir)?.is_some_and(|noted| noted != place))
}

/// From now on these files are the ones that this voter used last.
pub fn settle(dir: &Path) -> Result<(), DiskError> {
    let place = place(dir)?;
    match noted(dir)?.is_some_and(|noted| noted == place) {
        true => Ok(()),
        false => durable::replace_file(&dir.join(PLACE), FILE_MODE, place.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(openraft::CommittedLeaderId::new(term, 1), index)
    }

    fn of(count: u64) -> Voters {
        Voters { since: Some(log_id(0, 0)), sets: vec![(1..=count).collect()] }
    }

    fn known(count: u64, vote: Vote, last: u64) -> Known {
        let last = Some(log_id(1, last));
        Known { lacks: false, vote, last, applied: last, voters: of(count) }
    }

    /// Voter 1 of so many, which has entry 5 and vote 1 for peer 1, as everyone has.
    fn start(count: u64, copy: bool) -> (Recall, Known) {
        (Recall::new(1, copy, of(count)), known(count, Vote::new(1, 1), 5))
    }

    #[test]
    fn who_is_alone_asks_nobody_and_who_is_not_waits_for_half_of_all() {
        let now = Instant::now();
        for count in 1..=7 {
            let (mut recall, own) = start(count, true);
            assert_eq!(recall.has_others(), count > 1);
            let mut heard = 0;
            while recall.judge(&own, now) != Verdict::Whole {
                heard += 1;
                recall.hear(1 + heard, own.clone(), now);
            }
            let half = if count == 1 { 0 } else { count.div_ceil(2) };
            assert_eq!(heard, half, "of {count}");
        }
    }

    #[test]
    fn a_majority_is_enough_after_a_while_but_never_for_a_copy() {
        let now = Instant::now();
        for copy in [false, true] {
            let (mut recall, own) = start(3, copy);
            let late = now + 3 * PATIENCE;
            assert_eq!(recall.judge(&own, late), Verdict::Ask, "alone it is no majority");
            recall.hear(2, own.clone(), late);
            // Whoever boots a little later is still waited for.
            assert_eq!(recall.judge(&own, late), Verdict::Ask);
            let then = late + PATIENCE;
            let expected = if copy { Verdict::Ask } else { Verdict::Whole };
            assert_eq!(recall.judge(&own, then), expected);
            recall.hear(3, own.clone(), then);
            assert_eq!(recall.judge(&own, then), Verdict::Whole);
        }
    }

    #[test]
    fn who_forgot_what_others_have_promises_it_again_and_waits_for_the_entries() {
        let now = Instant::now();
        let (mut recall, mut own) = start(3, true);
        recall.hear(2, own.clone(), now);
        recall.hear(3, known(3, Vote::new_committed(4, 3), 9), now);
        assert_eq!(recall.judge(&own, now), Verdict::Promise(Vote::new(4, 3)));
        own.vote = Vote::new(4, 3);
        assert_eq!(recall.judge(&own, now), Verdict::Behind(log_id(1, 9)));
        // What is ordered since is no part of what it forgot.
        recall.hear(3, known(3, Vote::new_committed(4, 3), 12), now);
        own.last = Some(log_id(1, 9));
        assert_eq!(recall.judge(&own, now), Verdict::Whole);
        // A vote for itself that it does not remember: never the same term again.
        let (mut recall, own) = start(3, true);
        recall.hear(2, known(3, Vote::new(7, 1), 5), now);
        recall.hear(3, own.clone(), now);
        assert_eq!(recall.judge(&own, now), Verdict::Promise(Vote::new(8, 0)));
    }

    #[test]
    fn what_was_not_ordered_binds_only_as_long_as_its_holder_answers() {
        let now = Instant::now();
        let (mut recall, own) = start(3, false);
        let mut third = own.clone();
        (third.last, third.applied) = (Some(log_id(1, 9)), Some(log_id(1, 7)));
        recall.hear(2, own.clone(), now);
        recall.hear(3, third, now);
        assert_eq!(recall.judge(&own, now), Verdict::Behind(log_id(1, 9)));
        let later = now + PATIENCE;
        assert_eq!(recall.judge(&own, later), Verdict::Behind(log_id(1, 7)));
    }

    #[test]
    fn who_lost_its_log_says_nothing_for_sure_and_the_newest_say_who_votes() {
        let now = Instant::now();
        for copy in [false, true] {
            let (mut recall, own) = start(3, copy);
            let mut third = own.clone();
            third.lacks = true;
            recall.hear(2, own.clone(), now);
            recall.hear(3, third, now);
            let expected = if copy { Verdict::Ask } else { Verdict::Whole };
            assert_eq!(recall.judge(&own, now), expected, "nobody is left to wait for");
        }
        // It was alone when the copy was made of which only one other heard.
        let (mut recall, own) = start(2, true);
        let mut second = known(5, own.vote, 5);
        second.voters.since = Some(log_id(1, 3));
        recall.hear(2, second, now);
        assert_eq!(recall.judge(&own, now), Verdict::Ask);
        assert_eq!(recall.others(&own.voters), BTreeSet::from([2, 3, 4, 5]));
    }

    #[test]
    fn a_copied_directory_is_told_from_the_one_used_last() {
        let home = tempfile::tempdir().expect("a directory");
        let (dir, copy) = (home.path().join("a"), home.path().join("b"));
        for dir in [&dir, &copy] {
            fs::create_dir_all(dir.join("wal")).expect("made");
            fs::write(dir.join("wal/id"), "key").expect("written");
        }
        assert!(!is_copy(&dir).expect("read"), "nothing was noted yet");
        settle(&dir).expect("noted");
        assert!(!is_copy(&dir).expect("read"));
        fs::copy(dir.join(PLACE), copy.join(PLACE)).expect("copied");
        assert!(is_copy(&copy).expect("read"));
        settle(&copy).expect("noted");
        assert!(!is_copy(&copy).expect("read"));
    }
}
