//! This machine's own peer of a network, in whichever process it runs.
//!
//! Owns: who is the peer where nobody runs `mictlan serve`: the first of this user's processes that
//! needs one, and when it ends, another that still does. Each opens the same socket, so that all
//! others find it.
//! Where an invite made it listen for other machines, whichever process it is listens.
//! Never: takes the place of a peer that `mictlan serve` runs; whoever started that starts it again.
//! Invariant: that no lease can be left from before is concluded only from the exclusive lock on
//! the network: then no other process of this machine works on it.

use super::announce;
use super::connect::key_of;
use super::error::CliError;
use crate::config::{Config, Network as Configured, Paths, Serve};
use crate::here::{Here, HereError};
use crate::http::transport::Transport;
use crate::link::{Link, LinkError};
use crate::store;
use crate::store::durable;
use mictlan::id::Label;
use std::fs::{File, TryLockError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// A process that has the store answers within this, or says that it ends.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Another process that starts, or ends, as the peer is waited for so long.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
/// How often a process that uses another's peer looks whether it is still there.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// That this process works on a network, for the others of this machine to see. The lock is the
/// kernel's, so a killed process leaves none behind.
pub struct Attached(File);

impl Attached {
    fn file(paths: &Paths, name: &Label) -> Result<File, CliError> {
        let dir = paths.data.join("networks");
        durable::create_dir(&dir, 0o700)?;
        let path = dir.join(format!("{name}.lock"));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        file.map_err(|error| CliError::Io(path, error))
    }

    async fn to(paths: &Paths, name: &Label) -> Result<Self, CliError> {
        let attached = Self(Self::file(paths, name)?);
        attached.share(name).await?;
        Ok(attached)
    }

    /// While a network is founded nobody else works on it, or founds it too. `is_there` ends the
    /// wait: somebody has founded it.
    pub async fn alone(
        paths: &Paths,
        name: &Label,
        mut is_there: impl FnMut() -> Result<bool, CliError>,
    ) -> Result<Self, CliError> {
        let file = Self::file(paths, name)?;
        let started = Instant::now();
        while !is_there()? {
            match file.try_lock() {
                // Once more under the lock: it may have been founded since.
                Ok(()) if is_there()? => break,
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => return Err(CliError::Runtime(error)),
                Err(TryLockError::WouldBlock) if started.elapsed() > SETTLED_WITHIN => {
                    return Err(CliError::InUse { network: name.to_string() });
                }
                Err(TryLockError::WouldBlock) => sleep(PAUSE).await,
            }
        }
        Err(CliError::NetworkExists(name.to_string()))
    }

    /// It is founded: others may come.
    pub async fn share(&self, name: &Label) -> Result<(), CliError> {
        let started = Instant::now();
        loop {
            match self.0.try_lock_shared() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(error)) => return Err(CliError::Runtime(error)),
                Err(TryLockError::WouldBlock) if started.elapsed() > SETTLED_WITHIN => {
                    return Err(CliError::InUse { network: name.to_string() });
                }
                Err(TryLockError::WouldBlock) => sleep(PAUSE).await,
            }
        }
    }

    /// Whether no other process works on the network. To be asked before this one does: for a
    /// moment it has no lock.
    async fn is_alone(&self, name: &Label) -> Result<bool, CliError> {
        let alone = self.0.try_lock().is_ok();
        self.share(name).await?;
        Ok(alone)
    }
}

/// What the peer is started with, wherever it is.
#[derive(Clone)]
pub struct Spot {
    pub paths: Paths,
    pub name: Label,
    pub configured: Configured,
    pub serve: Serve,
}

impl Spot {
    /// Nothing but this machine speaks to it.
    fn is_embedded(&self) -> bool {
        self.serve.listen.is_none()
    }

    /// Nobody runs it by itself.
    fn is_in_mounts(&self) -> bool {
        self.is_embedded() || self.serve.in_mounts
    }

    pub fn link(&self, transport: &Transport) -> Result<Link, CliError> {
        let peer = key_of(&self.serve, &self.paths)?;
        Ok(transport.unix(&self.paths.socket(&self.name), self.configured.id, peer)?)
    }

    /// Waits until another process answers, or this one is the peer.
    pub async fn find(&self, link: &Link) -> Result<(Option<Here>, Attached), CliError> {
        let attached = Attached::to(&self.paths, &self.name).await?;
        let started = Instant::now();
        loop {
            if answers(link).await {
                return Ok((None, attached));
            }
            let alone = self.is_embedded() && attached.is_alone(&self.name).await?;
            match self.start(alone).await {
                Ok(here) => return Ok((Some(here), attached)),
                Err(error) => match holder(&error) {
                    Some(_) if started.elapsed() < SETTLED_WITHIN => sleep(PAUSE).await,
                    Some(holder) => return Err(CliError::Held { holder }),
                    None => return Err(error),
                },
            }
        }
    }

    async fn start(&self, alone: bool) -> Result<Here, CliError> {
        let Spot { paths, name, configured, serve } = self;
        super::connect::start_here(paths, name, configured, serve, alone).await
    }

    /// The same as the configuration has it now, while the peer is still nobody else's to run.
    fn again(&self) -> Option<Self> {
        let config = Config::load(&self.paths.config_file()).ok()?;
        let configured = config.networks.get(&self.name)?.clone();
        let serve = configured.serve.clone()?;
        let spot = Self { configured, serve, ..self.clone() };
        spot.is_in_mounts().then_some(spot)
    }
}

/// A peer that refuses this key is there too.
async fn answers(link: &Link) -> bool {
    let answer = timeout(ANSWER_WITHIN, link.status()).await;
    matches!(answer, Ok(Ok(_) | Err(LinkError::Refused { .. })))
}

/// Who has the store, if that is what stands in the way.
pub fn holder(error: &CliError) -> Option<String> {
    match error {
        CliError::Here(HereError::Store(store::OpenError::Dir(store::DirError::InUse {
            holder,
            ..
        }))) => Some(holder.clone()),
        _ => None,
    }
}

/// The peer as a command or a mount uses it, until its end.
pub struct Near {
    /// The peer, once it is this process.
    here: Arc<watch::Sender<Option<Arc<Here>>>>,
    /// It is to be known by an address, and some process sees to that.
    announced: bool,
    watching: Option<JoinHandle<()>>,
    _attached: Attached,
}

impl Near {
    /// `here` is this process's own; without it another's is used, by `link`.
    pub fn new(spot: &Spot, link: &Link, here: Option<Here>, attached: Attached) -> Self {
        let announced = !spot.is_embedded() && (here.is_none() || spot.is_in_mounts());
        let here = Arc::new(watch::Sender::new(here.map(Arc::new)));
        let (by, of) = (link.clone(), here.clone());
        let watching = spot.is_in_mounts().then(|| tokio::spawn(look_after(spot.clone(), by, of)));
        Self { here, announced, watching, _attached: attached }
    }

    pub fn here(&self) -> Option<Arc<Here>> {
        self.here.borrow().clone()
    }

    /// Whether it is, or will be, known to the network by an address.
    pub fn is_announced(&self) -> bool {
        self.announced
    }

    /// Ends when this process is the peer and can be it no more.
    pub async fn ended(&self) -> String {
        let mut here = self.here.subscribe();
        loop {
            let now = here.borrow_and_update().clone();
            match now {
                Some(here) => return here.ended().await,
                None if here.changed().await.is_err() => std::future::pending().await,
                None => {}
            }
        }
    }

    pub async fn stop(mut self) {
        if let Some(watching) = self.watching.take() {
            watching.abort();
            // Its end is what was asked for.
            let _ = watching.await;
        }
        let here = self.here.send_replace(None);
        if let Some(here) = here.and_then(Arc::into_inner) {
            here.stop().await;
        }
    }
}

/// The peer, as long as this process works on the network: until it is this one, then its door for
/// other machines.
async fn look_after(spot: Spot, link: Link, here: Arc<watch::Sender<Option<Arc<Here>>>>) {
    let now = here.borrow().clone();
    let now = match now {
        Some(now) => now,
        None => {
            let now = Arc::new(take_over(&spot, &link).await);
            here.send_replace(Some(now.clone()));
            now
        }
    };
    listen_where_told(&spot, &now).await;
}

/// Listens for other machines at the address that the configuration has, as soon as it has one, and
/// says so in the ledger. This machine may be elsewhere today, and have it again later.
async fn listen_where_told(spot: &Spot, here: &Here) {
    let (mut noted, mut said) = (None, String::new());
    loop {
        let told = spot.again().and_then(|spot| Some((spot.serve.listen.clone()?, spot)));
        if let Some((address, Spot { paths, name, configured, serve })) = told {
            if !here.listens_at(&address)
                && let Err(error) = here.listen(&address).await
                && error.to_string() != said
            {
                tracing::warn!(%error, "other machines do not reach this machine's peer now");
                said = error.to_string();
            }
            if here.listens_at(&address) && noted.as_ref() != Some(&address) {
                announce::announce(&paths, &name, &configured, &serve, here).await;
                noted = Some(address);
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Looks after another process's peer, and goes on as the peer when it has ended. Who used it finds
/// the new one at the same socket.
async fn take_over(spot: &Spot, link: &Link) -> Here {
    let mut said = String::new();
    loop {
        sleep(LOOK_EVERY).await;
        if answers(link).await {
            continue;
        }
        let Some(spot) = spot.again() else { continue };
        match spot.start(false).await {
            Ok(started) => {
                tracing::info!(
                    "the process that was this machine's peer ended; now it is this one"
                );
                return started;
            }
            Err(error) if holder(&error).is_some() => {}
            Err(error) if error.to_string() != said => {
                tracing::warn!(%error, "this machine's peer ended, and cannot be started again here");
                said = error.to_string();
            }
            Err(_) => {}
        }
    }
}
