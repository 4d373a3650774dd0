//! Where things are, and what the configuration file says.
//!
//! Owns: the XDG and root paths, the TOML file's fields, and their defaults.
//! Never: holds a secret: keys are files of their own (`identity`).
//! Invariant: a field that is not known is an error with its line, never ignored.

use crate::store::durable::{self, DiskError};
use mictlan::id::{Label, NetworkId, PrincipalId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub const PEER_PORT: u16 = 4510;
const METRICS: &str = "127.0.0.1:4511";
const FILE: &str = "config.toml";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "neither HOME nor {0} is set, so there is no place for mictlan's files; \
         nothing was done: set one, or MICTLAN_HOME to a directory of its own"
    )]
    NoHome(&'static str),
    #[error("cannot read {}: {why}", path.display())]
    Read { path: PathBuf, why: io::Error },
    #[error("{}: {why}", path.display())]
    Malformed { path: PathBuf, why: Box<toml::de::Error> },
    #[error("the configuration cannot be written as TOML: {0}")]
    Render(#[from] toml::ser::Error),
    #[error("{} is not a directory of this user's alone; remove it, or set XDG_RUNTIME_DIR",
        .0.display())]
    NotPrivate(PathBuf),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Puts everything below one directory, whoever runs this.
pub const HOME: &str = "MICTLAN_HOME";

/// Where this user's, or for root this machine's, files are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    pub config: PathBuf,
    /// Networks and stores: what must not be lost.
    pub data: PathBuf,
    /// Journals, remembered checkpoints.
    pub state: PathBuf,
    /// Caches: what may be lost.
    pub cache: PathBuf,
    /// Sockets; gone after a reboot.
    pub runtime: PathBuf,
}

impl Paths {
    /// From this process's user and environment.
    pub fn of_process() -> Result<Self, ConfigError> {
        if let Some(home) = std::env::var_os(HOME).filter(|home| !home.is_empty()) {
            return Ok(Self::below(Path::new(&home)));
        }
        let uid = rustix::process::geteuid();
        Self::of(uid.is_root(), uid.as_raw(), |name| std::env::var_os(name))
    }

    /// Everything below one directory: several peers on one machine, or a portable one.
    pub fn below(home: &Path) -> Self {
        Self {
            config: home.join("config"),
            data: home.join("data"),
            state: home.join("state"),
            cache: home.join("cache"),
            runtime: home.join("run"),
        }
    }

    pub fn of(
        root: bool,
        uid: u32,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        if root {
            return Ok(Self {
                config: "/etc/mictlan".into(),
                data: "/var/lib/mictlan".into(),
                state: "/var/lib/mictlan/state".into(),
                cache: "/var/cache/mictlan".into(),
                runtime: "/run/mictlan".into(),
            });
        }
        // XDG says that a relative path is to be ignored.
        let set = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let place = |name: &'static str, below_home: &str| {
            let home = || set("HOME").map(|home| home.join(below_home));
            let base = set(name).or_else(home).ok_or(ConfigError::NoHome(name))?;
            Ok::<_, ConfigError>(base.join("mictlan"))
        };
        let runtime = match set("XDG_RUNTIME_DIR") {
            Some(base) => base.join("mictlan"),
            // Without a session manager; `make_runtime` checks whose it is.
            None => PathBuf::from(format!("/tmp/mictlan-{uid}")),
        };
        Ok(Self {
            config: place("XDG_CONFIG_HOME", ".config")?,
            data: place("XDG_DATA_HOME", ".local/share")?,
            state: place("XDG_STATE_HOME", ".local/state")?,
            cache: place("XDG_CACHE_HOME", ".cache")?,
            runtime,
        })
    }

    /// Makes the directory of the sockets, or checks that the one there is ours alone: below
    /// `/tmp` anybody could have made it first.
    pub fn make_runtime(&self) -> Result<(), ConfigError> {
        let path = &self.runtime;
        durable::create_dir(path, 0o700)?;
        // Of the name itself, not of what a link points at.
        let meta =
            path.symlink_metadata().map_err(|why| ConfigError::Read { path: path.clone(), why })?;
        let own = meta.uid() == rustix::process::geteuid().as_raw();
        match meta.is_dir() && own && meta.mode() & 0o077 == 0 {
            true => Ok(()),
            false => Err(ConfigError::NotPrivate(path.clone())),
        }
    }

    pub fn keys(&self) -> PathBuf {
        self.config.join("keys")
    }

    pub fn config_file(&self) -> PathBuf {
        self.config.join(FILE)
    }

    /// A peer's ledger, store and sequencer of one network.
    pub fn network(&self, name: &Label) -> PathBuf {
        self.data.join("networks").join(name.as_str())
    }

    /// Where a peer of this network listens on this machine.
    pub fn socket(&self, name: &Label) -> PathBuf {
        self.runtime.join(format!("{name}.sock"))
    }
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The principal's key file, unless `-o key=NAME` says another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Label>,
    /// The network that a bare DIR means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Label>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<Label, Network>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    #[serde(with = "network_hex")]
    pub id: NetworkId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    /// Where to begin; the ledger says who else there is. Where a peer serves, it keeps the other
    /// voters here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<KnownPeer>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownPeer {
    /// Its number in the network.
    pub id: u64,
    #[serde(with = "key_hex")]
    pub key: PrincipalId,
    pub addresses: Vec<String>,
}

/// How this machine is a peer of the network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serve {
    /// The peer's number in the network.
    pub id: u64,
    /// Its actor name.
    pub name: Label,
    /// The peer's own principal: a key file.
    pub key: Label,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Nobody runs `mictlan serve`: whichever process of this machine is the peer listens there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_mounts: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// Bytes; absent: what the file system has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<Label>,
    /// It was invited to vote and has not yet said that it does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks_vote: bool,
    #[serde(default = "metrics")]
    pub metrics: String,
}

impl Serve {
    /// Metrics and health, on this machine alone.
    pub fn default_metrics() -> String {
        metrics()
    }
}

fn metrics() -> String {
    METRICS.to_owned()
}

impl Config {
    /// The file's; the default where there is none.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(why) => return Err(ConfigError::Read { path: path.to_owned(), why }),
        };
        toml::from_str(&text)
            .map_err(|why| ConfigError::Malformed { path: path.to_owned(), why: Box::new(why) })
    }

    /// Replaces the file; what a person wrote beside the known fields would have been refused.
    pub fn save(&self, path: &Path) -> Result<(), ConfigError> {
        let text = toml::to_string_pretty(self)?;
        let dir = path.parent().expect("a configuration file is in a directory");
        durable::create_dir(dir, 0o700)?;
        Ok(durable::replace_file(path, 0o600, text.as_bytes())?)
    }
}

macro_rules! hex_field {
    ($module:ident, $type:ty) => {
        mod $module {
            use super::*;
            use serde::de::Error;

            pub fn serialize<S: serde::Serializer>(id: &$type, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&id.to_hex())
            }

            pub fn deserialize<'de, D: serde::Deserializer<'de>>(
                from: D,
            ) -> Result<$type, D::Error> {
                let text = String::deserialize(from)?;
                <$type>::from_hex(&text).ok_or_else(|| D::Error::custom("64 lower-case hex digits"))
            }
        }
    };
}

hex_field!(network_hex, NetworkId);
hex_field!(key_hex, PrincipalId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_xdg_and_root_has_its_own() {
        let env = |name: &str| match name {
            "HOME" => Some(OsString::from("/home/a")),
            "XDG_STATE_HOME" => Some(OsString::from("/state")),
            "XDG_DATA_HOME" => Some(OsString::from("relative")),
            _ => None,
        };
        let paths = Paths::of(false, 7, env).expect("a home");
        assert_eq!(paths.keys(), Path::new("/home/a/.config/mictlan/keys"));
        assert_eq!(paths.data, Path::new("/home/a/.local/share/mictlan"));
        assert_eq!(paths.state, Path::new("/state/mictlan"));
        assert_eq!(paths.runtime, Path::new("/tmp/mictlan-7"));
        let root = Paths::of(true, 0, env).expect("root needs no home");
        assert_eq!(root.runtime, Path::new("/run/mictlan"));
        let homeless = Paths::of(false, 7, |_| None);
        assert!(matches!(homeless, Err(ConfigError::NoHome(_))));
    }

    #[test]
    fn sockets_are_kept_only_in_a_directory_of_our_own() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let mut paths = Paths::of(true, 0, |_| None).expect("root needs no home");
        paths.runtime = dir.path().join("new");
        paths.make_runtime().expect("a new one");
        paths.make_runtime().expect("the same again");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&paths.runtime, open).expect("a chmod");
        assert!(matches!(paths.make_runtime(), Err(ConfigError::NotPrivate(_))));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).expect("a link");
        paths.runtime = dir.path().join("link");
        assert!(matches!(paths.make_runtime(), Err(ConfigError::NotPrivate(_))));
    }

    #[test]
    fn a_configuration_comes_back_and_an_unknown_field_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mictlan").join(FILE);
        assert_eq!(Config::load(&path).expect("no file"), Config::default());
        let label = |text| Label::parse(text).expect("a label");
        let peer = KnownPeer {
            id: 2,
            key: PrincipalId([2; 32]),
            addresses: vec!["192.0.2.7:4510".to_owned()],
        };
        let serve = Serve {
            id: 1,
            name: label("first"),
            key: label("peer"),
            listen: Some("[::]:4510".to_owned()),
            in_mounts: false,
            store: None,
            capacity: Some(1 << 40),
            domain: None,
            asks_vote: false,
            metrics: metrics(),
        };
        let network = Network { id: NetworkId([1; 32]), serve: Some(serve), peers: vec![peer] };
        let config = Config {
            key: Some(label("alice")),
            network: Some(label("home")),
            networks: BTreeMap::from([(label("home"), network)]),
        };
        config.save(&path).expect("a writable directory");
        assert_eq!(Config::load(&path).expect("what was written"), config);
        std::fs::write(&path, "kex = \"alice\"\n").expect("a writable file");
        let why = Config::load(&path).expect_err("a misspelt field").to_string();
        assert!(why.contains("kex") && why.contains("line 1"), "{why}");
    }
}
