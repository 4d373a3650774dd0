//! `-o` options of a mount, parsed once.
//!
//! Owns: every option's name, its value's form, its default, and the line that says what it does.
//! Invariant: an unknown option is an error that names the nearest known one; what only mount(8),
//! fstab or systemd mean by an option is accepted and dropped.

use mictlan::id::Label;
use std::net::SocketAddr;
use std::time::Duration;

/// When `close` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The data is in the local journal; its commit follows within a second.
    Journal,
    /// The data is on its peers and committed.
    Peers,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The principal whose key is used; `None` is the configured default.
    pub key: Option<Label>,
    pub read_only: bool,
    /// A read-only mount that sees what others have closed, instead of following at most 3 s behind.
    pub coherent: bool,
    pub foreground: bool,
    /// `/ledger` is neither listed nor found.
    pub no_ledger: bool,
    pub durability: Durability,
    /// The ceiling of what this mount keeps in memory, in bytes.
    pub memory_bytes: u64,
    /// After this long an operation that cannot be answered fails.
    pub deadline: Duration,
    /// Every inode is shown as this user's or group's.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// `None`: all users as root, the owner alone otherwise.
    pub allow_other: Option<bool>,
    /// Where `/metrics` and `/health` of this mount are served; always on loopback.
    pub metrics: Option<SocketAddr>,
    /// Passed to the kernel as they are: nodev, nosuid, noexec and their opposites.
    pub kernel: Vec<KernelFlag>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFlag {
    Dev,
    NoDev,
    Suid,
    NoSuid,
    Exec,
    NoExec,
    NoAtime,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            key: None,
            read_only: false,
            coherent: false,
            foreground: false,
            no_ledger: false,
            durability: Durability::Journal,
            memory_bytes: 256 << 20,
            deadline: Duration::from_secs(60),
            uid: None,
            gid: None,
            allow_other: None,
            metrics: None,
            kernel: Vec::new(),
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("unknown option {option:?}{}", near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default())]
    Unknown { option: String, near: Option<&'static str> },
    #[error(
        "{option} stays as it was when this was mounted; nothing was changed: mictlan umount DIR, \
         and mount it again. While mounted only ro, rw, nodev, nosuid, noexec and noatime change"
    )]
    Fixed { option: &'static str },
    #[error("option {option:?} takes {takes}, not {value:?}")]
    Value { option: &'static str, value: String, takes: &'static str },
}

/// What a user may ask for: the name, what stands behind it, and what it does. `parse` takes no
/// option that has no line here, and every list that people see is made of these lines.
const OPTIONS: [(&str, &str, &str); 21] = [
    ("ro", "", "read-only: what others commit is followed, at most 3 s behind"),
    ("rw", "", "read and write; the default"),
    ("coherent", "", "with ro: each look sees what others have closed, and asks the leader for it"),
    ("key", "=NAME", "whose key is used; by default the configured one"),
    (
        "durability",
        "=journal|peers",
        "when close returns: the data is in this host's journal (the default), or on its peers \
         and committed",
    ),
    ("memory", "=SIZE", "the most that is kept in memory: 256M, or what is said, at least 64M"),
    ("deadline", "=SECONDS", "when what cannot be answered fails: 60, or what is said, 1 to 3600"),
    ("noledger", "", "ledger is not shown at the root"),
    ("metrics", "=ADDRESS", "where /metrics and /health are, on loopback, such as 127.0.0.1:4512"),
    ("uid", "=NUMBER", "all files are shown as this user's"),
    ("gid", "=NUMBER", "all files are shown as this group's"),
    (
        "allow_other",
        "",
        "all users may use the mount; on for root, others need user_allow_other in /etc/fuse.conf",
    ),
    ("default_permissions", "", "the kernel checks modes and ACLs; always on"),
    ("foreground", "", "stay in front"),
    ("nodev", "", "device nodes do not open; always so unless root mounts"),
    ("dev", "", "they do; the default for root"),
    ("nosuid", "", "setuid and setgid mean nothing; always so unless root mounts"),
    ("suid", "", "they do what they say; the default for root"),
    ("noexec", "", "no program is run from it"),
    ("exec", "", "programs are run from it; the default"),
    ("noatime", "", "for mount(8); reading changes no time here anyway"),
];

/// What only mount(8), fstab or systemd mean something by: taken, and dropped.
const DROPPED: [&str; 16] = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "relatime",
    "strictatime",
    "lazytime",
    "async",
    "atime",
    "comment",
];

/// Every option as it is written, and what it does.
pub fn listed() -> impl Iterator<Item = (String, &'static str)> {
    OPTIONS.iter().map(|(name, value, does)| (format!("{name}{value}"), *does))
}

/// What is taken and means nothing here; beside it all that begins with `x-`.
pub fn dropped() -> String {
    DROPPED.join(", ")
}

/// Memory below this cannot hold one chunk being written and one being read.
const MEMORY_MIN: u64 = 64 << 20;

impl Options {
    /// Takes one comma-separated list; later options win over earlier ones.
    pub fn parse(&mut self, list: &str) -> Result<(), OptionError> {
        list.split(',').filter(|option| !option.is_empty()).try_for_each(|one| self.option(one))
    }

    /// A mount that is not read-only sees what others have closed anyway.
    pub fn is_coherent(&self) -> bool {
        self.read_only && self.coherent
    }

    /// The first option in which `other` differs and that a mount keeps as long as it lasts.
    pub fn fixed_difference(&self, other: &Self) -> Option<&'static str> {
        let same = [
            ("key", self.key == other.key),
            ("coherent", self.coherent == other.coherent),
            ("noledger", self.no_ledger == other.no_ledger),
            ("durability", self.durability == other.durability),
            ("memory", self.memory_bytes == other.memory_bytes),
            ("deadline", self.deadline == other.deadline),
            ("uid", self.uid == other.uid),
            ("gid", self.gid == other.gid),
            ("metrics", self.metrics == other.metrics),
        ];
        same.into_iter().find_map(|(option, same)| (!same).then_some(option))
    }

    fn option(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match value {
            _ if name.starts_with("x-") || name == "comment" => return Ok(()),
            None if DROPPED.contains(&name) => return Ok(()),
            _ if OPTIONS.iter().any(|(known, ..)| *known == name) => {}
            _ => return Err(unknown(option, name)),
        }
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("coherent", None) => self.coherent = true,
            ("foreground", None) => self.foreground = true,
            ("noledger", None) => self.no_ledger = true,
            ("allow_other", None) => self.allow_other = Some(true),
            ("default_permissions", None) => {} // always on
            ("dev", None) => self.kernel.push(KernelFlag::Dev),
            ("nodev", None) => self.kernel.push(KernelFlag::NoDev),
            ("suid", None) => self.kernel.push(KernelFlag::Suid),
            ("nosuid", None) => self.kernel.push(KernelFlag::NoSuid),
            ("exec", None) => self.kernel.push(KernelFlag::Exec),
            ("noexec", None) => self.kernel.push(KernelFlag::NoExec),
            ("noatime", None) => self.kernel.push(KernelFlag::NoAtime),
            ("key", Some(v)) => {
                let label = Label::parse(v);
                self.key = Some(label.ok_or_else(|| bad("key", v, "a key's name"))?);
            }
            ("durability", Some("journal")) => self.durability = Durability::Journal,
            ("durability", Some("peers")) => self.durability = Durability::Peers,
            ("durability", v) => {
                return Err(bad("durability", v.unwrap_or(""), "`journal` or `peers`"));
            }
            ("memory", v) => {
                let bytes = v.and_then(size).filter(|bytes| *bytes >= MEMORY_MIN);
                let takes = "a size of at least 64M, such as 256M or 1G";
                self.memory_bytes = bytes.ok_or_else(|| bad("memory", v.unwrap_or(""), takes))?;
            }
            ("deadline", v) => {
                let secs = v.and_then(|v| v.trim_end_matches('s').parse().ok());
                let secs = secs.filter(|secs| (1..=3600).contains(secs));
                let takes = "seconds from 1 to 3600";
                let secs = secs.ok_or_else(|| bad("deadline", v.unwrap_or(""), takes))?;
                self.deadline = Duration::from_secs(secs);
            }
            ("metrics", v) => {
                let address: Option<SocketAddr> = v.and_then(|v| v.parse().ok());
                let address = address.filter(|address| address.ip().is_loopback());
                let takes = "an address on loopback, such as 127.0.0.1:4512";
                let address = address.ok_or_else(|| bad("metrics", v.unwrap_or(""), takes))?;
                self.metrics = Some(address);
            }
            ("uid", Some(v)) => self.uid = Some(number("uid", v)?),
            ("gid", Some(v)) => self.gid = Some(number("gid", v)?),
            (name, _) => return Err(unknown(option, name)),
        }
        Ok(())
    }
}

fn unknown(option: &str, name: &str) -> OptionError {
    OptionError::Unknown { option: option.to_owned(), near: nearest(name) }
}

fn bad(option: &'static str, value: &str, takes: &'static str) -> OptionError {
    OptionError::Value { option, value: value.to_owned(), takes }
}

fn number(option: &'static str, value: &str) -> Result<u32, OptionError> {
    value.parse().map_err(|_| bad(option, value, "a number"))
}

/// `256M`, `1G`, `65536`: binary units; `None` for anything else.
pub fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.trim_end_matches("iB").trim_end_matches('B') {
        t if t.ends_with(['k', 'K']) => (&t[..t.len() - 1], 1 << 10),
        t if t.ends_with('M') => (&t[..t.len() - 1], 1 << 20),
        t if t.ends_with('G') => (&t[..t.len() - 1], 1 << 30),
        t if t.ends_with('T') => (&t[..t.len() - 1], 1 << 40),
        t => (t, 1u64),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn nearest(name: &str) -> Option<&'static str> {
    let known = OPTIONS.iter().map(|(known, ..)| *known).chain(DROPPED);
    let scored = known.map(|known| (strsim::damerau_levenshtein(name, known), known));
    scored.min().filter(|(distance, known)| *distance <= known.len() / 2).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<Options, OptionError> {
        let mut options = Options::default();
        options.parse(list).map(|()| options)
    }

    #[test]
    fn options_are_taken_and_fstab_words_dropped() {
        let o = parsed("ro,key=alice,memory=1G,noauto,x-systemd.automount,_netdev").expect("good");
        assert!(o.read_only && o.memory_bytes == 1 << 30);
        assert_eq!(o.key.expect("key").as_str(), "alice");
        assert!(!parsed("ro,rw").expect("good").read_only);
    }

    #[test]
    fn every_option_that_is_listed_is_understood() {
        for (shown, does) in listed() {
            let example = match shown.split_once('=') {
                None => shown.clone(),
                Some(("key", _)) => "key=alice".to_owned(),
                Some(("durability", values)) => {
                    values.split('|').map(|value| format!("durability={value},")).collect()
                }
                Some(("memory", _)) => "memory=1G".to_owned(),
                Some(("metrics", _)) => "metrics=[::1]:4512".to_owned(),
                Some((name, _)) => format!("{name}=7"),
            };
            assert!(parsed(&example).is_ok(), "{example}");
            assert!(!does.is_empty() && !does.ends_with('.'), "{shown}: {does}");
        }
        assert!(parsed(&dropped().replace(' ', "")).is_ok());
        assert!(parsed("comment=a,x-gvfs-show,x-any=1").is_ok());
    }

    #[test]
    fn a_mistyped_option_gets_the_nearest_one() {
        let unknown = |o: &str, near| Err(OptionError::Unknown { option: o.to_owned(), near });
        assert_eq!(parsed("memroy=1G"), unknown("memroy=1G", Some("memory")));
        assert_eq!(parsed("noledgr"), unknown("noledgr", Some("noledger")));
        assert_eq!(parsed("zzzzzzzz"), unknown("zzzzzzzz", None));
        let text = parsed("memroy=1G").expect_err("unknown").to_string();
        assert_eq!(text, "unknown option \"memroy=1G\"; did you mean \"memory\"?");
    }

    #[test]
    fn what_a_mount_keeps_is_told_from_what_the_kernel_decides() {
        let before = parsed("key=alice,memory=1G").expect("good");
        let differs = |list: &str| {
            let mut wanted = before.clone();
            wanted.parse(list).map(|()| before.fixed_difference(&wanted))
        };
        assert_eq!(differs("ro,nodev,noexec,noatime,foreground"), Ok(None));
        assert_eq!(differs("memory=1024M,key=alice"), Ok(None), "the same in other words");
        for (list, option) in [
            ("memory=512M", "memory"),
            ("ro,key=bob", "key"),
            ("durability=peers", "durability"),
            ("deadline=5", "deadline"),
            ("uid=5", "uid"),
            ("gid=5", "gid"),
            ("noledger", "noledger"),
            ("coherent", "coherent"),
            ("metrics=127.0.0.1:4512", "metrics"),
        ] {
            assert_eq!(differs(list), Ok(Some(option)));
        }
    }

    #[test]
    fn a_bad_value_says_what_is_taken() {
        for bad in [
            "memory=1",
            "memory",
            "durability=x",
            "durability",
            "uid=x",
            "deadline=0",
            "metrics=0.0.0.0:1",
        ] {
            assert!(matches!(parsed(bad), Err(OptionError::Value { .. })), "{bad}");
        }
        assert_eq!(size("256MiB"), Some(256 << 20));
        assert_eq!(size("99999999999T"), None);
    }
}
