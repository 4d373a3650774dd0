//! `mictlan invite --listen`: the peer inside this machine's mounts listens for other machines.
//!
//! Owns: what is checked and remembered first. The process that is the peer reads the configuration
//! and opens the door (`near`).
//! Invariant: nothing is remembered of an address that this machine does not have.

use super::connect;
use super::error::CliError;
use crate::config::{Config, Paths};
use crate::here::HereError;
use mictlan::id::Label;
use std::net::SocketAddr;
use tokio::net::TcpListener;

pub async fn remember(network: Option<&Label>, address: &str) -> Result<(), CliError> {
    let paths = Paths::of_process()?;
    let file = paths.config_file();
    let mut config = Config::load(&file)?;
    if config.networks.is_empty() && network.is_none() {
        connect::connect(None, None).await?.close().await;
        config = Config::load(&file)?;
    }
    let name = network.or(config.network.as_ref()).cloned().ok_or(CliError::NoNetwork)?;
    let there = config.networks.keys().map(Label::to_string).collect::<Vec<_>>().join(", ");
    let configured = config.networks.get_mut(&name);
    let configured =
        configured.ok_or_else(|| CliError::UnknownNetwork { name: name.to_string(), there })?;
    let Some(serve) = &mut configured.serve else {
        return Err(CliError::Usage(format!(
            "this machine is no peer of {name}; nobody was invited, and nothing was changed"
        )));
    };
    if serve.listen.as_deref() == Some(address) {
        return Ok(());
    }
    if let (Some(other), false) = (&serve.listen, serve.in_mounts) {
        return Err(CliError::Usage(format!(
            "this machine's peer listens at {other}, and nothing was changed; where it shall \
             listen: mictlan serve --listen {address}"
        )));
    }
    if address.parse().is_ok_and(|address: SocketAddr| address.ip().is_unspecified()) {
        return Err(CliError::Usage(format!(
            "{address} is every address of this machine, and nothing was changed; --listen takes \
             one at which the others reach it"
        )));
    }
    let failed = |cause| HereError::Listen { address: address.to_owned(), cause };
    drop(TcpListener::bind(address).await.map_err(failed)?);
    serve.listen = Some(address.to_owned());
    serve.in_mounts = true;
    Ok(config.save(&file)?)
}
