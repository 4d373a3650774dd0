//! `mictlan status`, `peer ls`, `volume ls` and `df`: what this host can see of a network.
//!
//! Owns: the verdict, the problems with their codes, and what to type next.
//! Never: changes anything, or waits long: who does not answer within seconds is what it reports.
//!
//! | code | means |
//! | --- | --- |
//! | `no-quorum` | fewer than a majority of the voters answer: reads go on, writes wait |
//! | `key-refused` | peers answer, and do not let this key in |
//! | `peer-silent` | a peer did not answer |
//! | `store-out` | a peer's store takes no writes |
//! | `store-full` | a peer's store is nearly full |
//! | `store-new` | a peer began with an empty store, and had another before |
//! | `damaged-chunks` | a peer has chunks that are damaged, and serves them no more |
//! | `few-peers` | a volume wants more copies than there are peers |
//! | `unpublished` | records wait for cosignatures |
//! | `journal-waits` | an ended mount of this host left what is not committed |
//! | `journal-disk-full` | the disk of this host's journals is full: mounts refuse changes, or soon will |
//! | `peer-held` | a process that does not answer has this machine's store |
//! | `copies-owed` | a mount has chunks that are durable and not yet at all their copies |
//! | `copies-missing` | a peer has chunks of which it looked for all copies, and did not find them |
//! | `peer-away` | a peer does not answer a mount; since when |
//! | `peer-lied` | a peer gave a mount bytes that are not the chunk, or receipts for another one |
//! | `stale-view` | a mount has not heard of the log for 3 s, or of a cosignature for a minute |
//! | `unproved` | what a mount applied over 10 s ago is under no cosigned checkpoint yet |
//! | `mounted-without-quorum` | a mount is read-only, because most voters were away when it began |
//! | `reader` | the key of a mount may only read its volume |
//! | `commits-wait` | a mount has committed nothing for a minute though something waits, or cannot any more |
//! | `contradiction` | the voters signed another log, or a member named another root; all is `EIO` |
//! | `removed` | the key of a mount was removed from the volume |
//! | `not-mounted` | the directory is no mount of mictlan |

pub(super) mod look;
mod print;

use super::connect::label;
use super::error::CliError;
use super::{advice, log, runtime};
use crate::config::{Config, Paths};
use clap::{Args, Subcommand};
use mictlan::cluster::credit::{self, GRANT_MIN};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// What is wrong and no more than a nuisance leaves 0; the rest has a code of its own.
const NEEDS_ATTENTION: u8 = 12;
const NOBODY_ANSWERS: u8 = 5;

#[derive(Args)]
pub struct StatusArgs {
    /// A mount's directory; without it, the configured network.
    dir: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
}

#[derive(Args)]
pub struct Which {
    #[arg(long)]
    network: Option<String>,
    /// Print JSON: one object, or a list of one for each peer or volume.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
pub enum PeerVerb {
    /// List the peers: who votes, who answers, how much room each has.
    Ls(Which),
}

#[derive(Serialize, Default)]
pub struct Report {
    pub verdict: String,
    pub network: String,
    pub id: String,
    /// The key by which the peers were asked.
    pub key: String,
    pub leader: Option<u64>,
    pub voters: usize,
    pub voters_present: usize,
    pub records: Option<u64>,
    /// Records that a published checkpoint covers.
    pub published: Option<u64>,
    pub peers: Vec<PeerLine>,
    pub volumes: Vec<VolumeLine>,
    pub mounts: Vec<MountLine>,
    pub journals: Vec<JournalLine>,
    pub problems: Vec<Problem>,
    /// What lets this machine's peer listen, if it does not.
    #[serde(skip)]
    to_listen: Option<String>,
}

#[derive(Serialize)]
pub struct PeerLine {
    pub id: u64,
    pub name: String,
    pub addresses: Vec<String>,
    pub voter: bool,
    pub storage: bool,
    pub domain: String,
    pub answers: bool,
    /// It does not let this key in.
    pub refuses: bool,
    /// Why it does not.
    pub last_word: Option<String>,
    pub version: Option<String>,
    pub capacity_bytes: Option<u64>,
    pub used_bytes: Option<u64>,
    pub chunks: Option<u64>,
    /// Found damaged on its disk and not replaced yet.
    pub damaged_chunks: u64,
    /// It began empty, under a peer that had one before.
    pub store_is_new: bool,
    /// How far it has followed the ledger, and how far that is under a checkpoint that it proved.
    pub records: Option<u64>,
    pub published: Option<u64>,
    pub out_of_service: Option<String>,
    /// Of how many of its chunks it looked for all copies, and did not find them.
    pub copies_missing: u64,
}

#[derive(Serialize)]
pub struct VolumeLine {
    pub name: String,
    pub id: String,
    pub copies: u8,
    /// Whether new data is compressed where that gains.
    pub compress: bool,
    pub epoch: u64,
    /// The last record that its newest snapshot root covers.
    pub snapshot: Option<u64>,
}

#[derive(Serialize)]
pub struct MountLine {
    pub dir: String,
    pub source: String,
    /// Other mounts are on the volume, so each of its changes waits for a commit.
    pub beside_others: bool,
}

#[derive(Serialize)]
pub struct JournalLine {
    pub dir: String,
    pub bytes: u64,
    /// A mount that lives has it: nothing waits that it does not commit by itself.
    pub in_use: bool,
}

impl JournalLine {
    /// A mount that ended before anybody wrote to it left nothing but a head.
    fn waits(&self) -> bool {
        !self.in_use && self.bytes > 0
    }
}

#[derive(Serialize)]
pub struct Problem {
    pub code: &'static str,
    pub what: String,
    pub next: String,
    /// Data cannot be written, or is at risk, until something is done.
    pub severe: bool,
}

pub fn status(args: StatusArgs) -> Result<ExitCode, CliError> {
    let report = report(&args.which, args.dir)?;
    print::status(&report, args.which.json);
    Ok(code(&report))
}

pub fn peer(verb: PeerVerb) -> Result<ExitCode, CliError> {
    let PeerVerb::Ls(which) = verb;
    let report = report(&which, None)?;
    print::peers(&report, which.json);
    Ok(code(&report))
}

pub fn volumes(which: Which) -> Result<ExitCode, CliError> {
    let report = report(&which, None)?;
    print::volumes(&report, which.json);
    Ok(code(&report))
}

pub fn df(which: Which) -> Result<ExitCode, CliError> {
    let report = report(&which, None)?;
    print::df(&report, which.json);
    Ok(code(&report))
}

fn code(report: &Report) -> ExitCode {
    let nobody = !report.peers.iter().any(|peer| peer.answers);
    match (nobody, report.problems.iter().any(|problem| problem.severe)) {
        (true, _) => ExitCode::from(NOBODY_ANSWERS),
        (_, true) => ExitCode::from(NEEDS_ATTENTION),
        (_, false) => ExitCode::SUCCESS,
    }
}

fn report(which: &Which, dir: Option<PathBuf>) -> Result<Report, CliError> {
    log("error");
    let paths = Paths::of_process()?;
    let config = Config::load(&paths.config_file())?;
    let mut report = Report { mounts: look::mounts(&paths, &config), ..Report::default() };
    let mut wanted = which.network.as_deref().map(label).transpose()?;
    if let Some(dir) = dir {
        let text = dir.canonicalize().unwrap_or(dir).display().to_string();
        match report.mounts.iter().find(|mount| mount.dir == text) {
            Some(mount) => {
                let network = mount.source.split(':').next().unwrap_or_default();
                wanted = Some(label(network)?);
            }
            None => report.problems.push(Problem {
                code: "not-mounted",
                what: format!("{text} is no mount of a network that is configured here"),
                next: format!("mictlan mount {text}"),
                severe: true,
            }),
        }
    }
    let name = wanted.or(config.network.clone()).ok_or(CliError::NoNetwork)?;
    let configured = config.networks.get(&name).ok_or_else(|| {
        let there: Vec<&str> = config.networks.keys().map(|name| name.as_str()).collect();
        CliError::UnknownNetwork { name: name.to_string(), there: there.join(", ") }
    })?;
    report.network = name.to_string();
    report.id = configured.id.to_string();
    report.to_listen = advice::to_listen(&paths, &config, &name, configured);
    report.journals = look::journals(&paths);
    report.problems.extend(look::full_disk(&paths));
    runtime()?.block_on(look::network(&mut report, &paths, &config, &name, configured))?;
    for mount in &report.mounts {
        report.problems.extend(look::troubles(&paths, mount));
    }
    report.judge();
    Ok(report)
}

impl Report {
    /// What the facts mean; then the verdict.
    fn judge(&mut self) {
        let mut found = std::mem::take(&mut self.problems);
        self.voters = self.peers.iter().filter(|peer| peer.voter).count();
        self.voters_present = self.peers.iter().filter(|peer| peer.voter && peer.answers).count();
        found.extend(self.refusal());
        let heard = |peer: &&PeerLine| peer.voter && (peer.answers || peer.refuses);
        if self.peers.iter().filter(heard).count() * 2 <= self.voters {
            let (present, voters) = (self.voters_present, self.voters);
            found.push(Problem {
                code: "no-quorum",
                what: format!(
                    "{present} of {voters} voters answer; nothing acknowledged is lost, reads go \
                     on where copies answer, and writes wait for a majority"
                ),
                next: "start the silent peers: mictlan serve".to_owned(),
                severe: true,
            });
        }
        for peer in &self.peers {
            found.extend(peer.problems());
        }
        let homes = self.peers.iter().filter(|peer| peer.storage).count();
        for volume in self.volumes.iter().filter(|volume| usize::from(volume.copies) > homes) {
            let VolumeLine { name, copies, .. } = volume;
            found.push(Problem {
                code: "few-peers",
                what: format!("volume {name} wants {copies} copies and there are {homes} peers"),
                next: self.one_more_peer(),
                severe: false,
            });
        }
        found.extend(self.missing());
        if let (Some(records), Some(published)) = (self.records, self.published)
            && records > published
        {
            let waiting = records - published;
            found.push(Problem {
                code: "unpublished",
                what: format!("{waiting} records wait for cosignatures; usually for a second"),
                next: "mictlan status".to_owned(),
                severe: false,
            });
        }
        for journal in self.journals.iter().filter(|journal| journal.waits()) {
            let JournalLine { dir, bytes, .. } = journal;
            found.push(Problem {
                code: "journal-waits",
                what: format!("{bytes} bytes of an ended mount may not be committed: {dir}"),
                next: "mictlan mount DIR, with the same key".to_owned(),
                severe: true,
            });
        }
        self.problems = found;
        let severe = self.problems.iter().filter(|problem| problem.severe).count();
        self.verdict = match severe {
            0 => "works".to_owned(),
            1 => "1 problem needs attention".to_owned(),
            n => format!("{n} problems need attention"),
        };
    }
}

impl Report {
    fn one_more_peer(&self) -> String {
        let first = self.to_listen.as_ref().map(|commands| format!("{commands}, then "));
        format!(
            "{}mictlan invite, and on another machine: mictlan join CODE --listen ADDRESS:4510, \
             mictlan serve &",
            first.unwrap_or_default()
        )
    }

    /// Several peers may have the same chunk, so what they lack does not add up.
    fn missing(&self) -> Option<Problem> {
        let most = self.peers.iter().max_by_key(|peer| peer.copies_missing)?;
        let PeerLine { id, name, copies_missing: chunks, .. } = most;
        (*chunks > 0).then(|| Problem {
            code: "copies-missing",
            what: format!(
                "peer {id} ({name}) has {chunks} chunks of which it did not find all copies; it \
                 makes them when the peers that lack them answer, and looks again within a minute"
            ),
            next: "start the peers that are away: mictlan serve; make room on those that are full; see: \
                   mictlan peer ls"
                .to_owned(),
            severe: false,
        })
    }

    /// Peers that let somebody else in, and not this key: they work, and none has to be started.
    fn refusal(&self) -> Option<Problem> {
        let who = self.peers.iter().filter(|peer| peer.refuses);
        let who: Vec<String> = who.map(|peer| format!("peer {}", peer.id)).collect();
        let key = &self.key;
        (!who.is_empty()).then(|| Problem {
            code: "key-refused",
            what: format!(
                "key {key} is refused by {}: nobody let it into this network, or it was removed; \
                 nothing is lost, and nothing can be seen with it",
                who.join(", ")
            ),
            next: "ask an owner for an invite (mictlan invite), then here: mictlan join CODE; or \
                   name another of the keys here (mictlan key ls) in the configuration"
                .to_owned(),
            severe: true,
        })
    }
}

impl PeerLine {
    fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let PeerLine { id, name, .. } = self;
        if !self.answers && !self.refuses {
            let why = self.last_word.clone().unwrap_or_default();
            found.push(Problem {
                code: "peer-silent",
                what: format!("peer {id} ({name}) does not answer: {why}"),
                next: "on its machine: mictlan serve".to_owned(),
                severe: true,
            });
        }
        if let Some(why) = &self.out_of_service {
            found.push(Problem {
                code: "store-out",
                what: format!("peer {id} ({name}): {why}"),
                next: "check its disk, then start it again: mictlan serve".to_owned(),
                severe: true,
            });
        }
        if let (Some(used), Some(capacity)) = (self.used_bytes, self.capacity_bytes)
            && (used >= capacity / 20 * 19 || credit::for_content(capacity, used) < GRANT_MIN)
        {
            found.push(Problem {
                code: "store-full",
                what: format!(
                    "peer {id} ({name}): {used} of {capacity} bytes are used: it takes no more \
                     content, or soon none; what is written has fewer copies"
                ),
                next:
                    "make room on its disk, or on its machine: mictlan serve --capacity SIZE; or \
                       add a peer"
                        .to_owned(),
                severe: true,
            });
        }
        if self.store_is_new {
            found.push(Problem {
                code: "store-new",
                what: format!(
                    "peer {id} ({name}) began with an empty store, though it had one: the copies \
                     that it had are gone, and what was written before has those of other peers"
                ),
                next: "if its disk is only not mounted: stop it, mount the disk, start it again; \
                       else copies are made where the same bytes are written again: \
                       cat FILE > FILE.new && mv FILE.new FILE"
                    .to_owned(),
                severe: true,
            });
        }
        if self.damaged_chunks > 0 {
            found.push(Problem {
                code: "damaged-chunks",
                what: format!(
                    "peer {id} ({name}) holds {} damaged chunks, and serves none of them: a file \
                     reads as long as another copy is good",
                    self.damaged_chunks
                ),
                next:
                    "check its disk, and keep the other peers up; whole copies are made where the \
                       same bytes are written again: cat FILE > FILE.new && mv FILE.new FILE"
                        .to_owned(),
                severe: true,
            });
        }
        found
    }
}
