//! The report for people and for programs.

use super::{PeerLine, Report};
use mictlan::cluster::credit;
use serde::Serialize;

pub fn status(report: &Report, as_json: bool) {
    if as_json {
        return json(report);
    }
    println!("{}: {}", report.network, report.verdict);
    let leader = report.leader.map_or("none known".to_owned(), |leader| format!("peer {leader}"));
    let (present, voters) = (report.voters_present, report.voters);
    if voters > 0 {
        println!("  voters    {present} of {voters} answer; leader: {leader}");
    }
    if let Some(records) = report.records {
        let published = report.published.unwrap_or(0);
        println!("  ledger    {records} records, {published} under a published checkpoint");
    }
    for peer in &report.peers {
        println!("  peer {:<4} {:<7} {}", peer.id, role(peer), room(peer));
    }
    for mount in &report.mounts {
        let beside = match mount.beside_others {
            true => ", beside others: each change waits for its commit",
            false => "",
        };
        println!("  mount     {} on {}{beside}", mount.source, mount.dir);
    }
    for problem in &report.problems {
        println!("{} [{}] {}", if problem.severe { "!" } else { "-" }, problem.code, problem.what);
        println!("    next: {}", problem.next);
    }
}

fn room(peer: &PeerLine) -> String {
    let name = &peer.name;
    let follows = match peer.records {
        Some(records) if peer.answers => format!(", {records} records"),
        _ => String::new(),
    };
    match (peer.used_bytes, peer.capacity_bytes) {
        (Some(used), Some(capacity)) => {
            let out = if peer.out_of_service.is_some() { "takes no writes, " } else { "" };
            format!("{name}: {out}{} of {} used{follows}", size(used), size(capacity))
        }
        _ if peer.answers => format!("{name}: answers, keeps no chunks"),
        _ => format!("{name}: {}", peer.last_word.as_deref().unwrap_or("no answer")),
    }
}

pub fn peers(report: &Report, as_json: bool) {
    if as_json {
        return json(&report.peers);
    }
    for peer in &report.peers {
        let (at, role) = (peer.addresses.join(","), role(peer));
        println!("{:<4} {role:<7} {:<16} {at:<22} {}", peer.id, peer.domain, room(peer));
    }
}

/// Every voter stores as well, unless its record says that it does not.
fn role(peer: &PeerLine) -> &'static str {
    match (peer.voter, peer.storage) {
        (true, _) => "voter",
        (false, true) => "storage",
        (false, false) => "-",
    }
}

pub fn volumes(report: &Report, as_json: bool) {
    if as_json {
        return json(&report.volumes);
    }
    for volume in &report.volumes {
        let snapshot = volume.snapshot.map_or("-".to_owned(), |at| at.to_string());
        println!(
            "{:<20} {} copies{}, epoch {}, snapshot at {snapshot}, id {}",
            volume.name,
            volume.copies,
            if volume.compress { "" } else { ", not compressed" },
            volume.epoch,
            volume.id
        );
    }
}

/// What all stores have together. A volume keeps several copies of a byte, each on another peer.
pub fn df(report: &Report, as_json: bool) {
    let total: u64 = report.peers.iter().filter_map(|peer| peer.capacity_bytes).sum();
    let used: u64 = report.peers.iter().filter_map(|peer| peer.used_bytes).sum();
    let homes = report.peers.iter().filter(|peer| peer.capacity_bytes.is_some()).count() as u64;
    let wanted = report.volumes.iter().map(|volume| u64::from(volume.copies)).max().unwrap_or(1);
    let copies = wanted.min(homes).max(1);
    let free: Vec<u64> = report.peers.iter().filter_map(free).collect();
    let room = credit::room(&free, copies as u32);
    if as_json {
        let said = serde_json::json!({
            "total_bytes": total, "used_bytes": used, "copies": copies, "room_bytes": room,
        });
        return println!("{said}");
    }
    println!("stores  {} of {} used", size(used), size(total));
    println!("room    {} more, each byte kept {copies} times", size(room));
}

/// What one peer's store may still take of content.
fn free(peer: &PeerLine) -> Option<u64> {
    Some(credit::for_content(peer.capacity_bytes?, peer.used_bytes?))
}

fn json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).expect("plain fields are JSON");
    println!("{text}");
}

/// In binary units, to three digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
