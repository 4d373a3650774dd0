//! Invites over real TLS: who is believed, in which order, and how often.

use super::*;
use crate::http::tls::fingerprint;
use crate::identity::invite::{Invite, InviteError};
use crate::identity::join::{Entered, JoinError, join};
use crate::link::LinkError;
use mictlan::ledger::record::body::Role;
use zeroize::Zeroizing;

const NOW: TimeMs = TimeMs(1_800_000_000_000);

fn invite(host: &Host) -> Invite {
    let mut network = [0; 16];
    network.copy_from_slice(&host.peer.network.0[..16]);
    Invite {
        network,
        peer: fingerprint(&host.key.id()),
        secret: Zeroizing::new([6; 16]),
        expires: TimeMs(NOW.0 + 3_600_000),
        role: Role::Storage,
        voter: false,
        addresses: vec![host.address.to_string()],
    }
}

async fn redeem(invite: &Invite) -> Result<Entered, JoinError> {
    let transport = Transport::new(principal(9)).expect("a transport");
    within(join(&transport, invite, label("newcomer"), NOW)).await
}

/// What the newcomer got, or the sentence that it was refused with.
fn said(entered: Result<Entered, JoinError>) -> String {
    entered.map_or_else(|why| why.to_string(), |_| "entered".to_owned())
}

#[tokio::test]
async fn a_code_is_all_that_a_newcomer_needs_and_it_works_once() {
    let host = Host::start(1).await;
    let invite = invite(&host);
    host.ledger.invites.lock().expect("no holder panics").push(invite.principal().id());
    let parsed = Invite::parse(&invite.code()).unwrap_or_else(|why| panic!("{why}"));
    let entered = redeem(&parsed).await.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!((entered.network, entered.peer), (host.peer.network, host.key.id()));
    assert_eq!((entered.name, entered.joined.position), (label("home"), Position(8)));
    assert_eq!(entered.link.peer(), host.key.id());

    let again = redeem(&parsed).await.err();
    let used = matches!(
        &again,
        Some(JoinError::Link(LinkError::Refused { why: Failure::InviteRefused(_), .. }))
    );
    assert!(used, "{again:?}");
}

#[tokio::test]
async fn an_invite_says_nothing_to_another_peer_or_network() {
    let host = Host::start(1).await;
    let other_peer = Invite { peer: fingerprint(&principal(2).id()), ..invite(&host) };
    let answer = said(redeem(&other_peer).await);
    assert!(answer.contains("no connection"), "{answer}");

    let other_network = Invite { network: [9; 16], ..invite(&host) };
    let answer = redeem(&other_network).await.err();
    assert!(matches!(answer, Some(JoinError::OtherNetwork { .. })), "{answer:?}");
    let joins = host.ledger.joins.lock().expect("no holder panics");
    assert!(joins.is_empty(), "nothing was sent");
}

#[tokio::test]
async fn an_expired_invite_is_not_even_tried() {
    let host = Host::start(1).await;
    let expired = Invite { expires: NOW, ..invite(&host) };
    let answer = redeem(&expired).await.err();
    assert!(matches!(answer, Some(JoinError::Invite(InviteError::Expired))), "{answer:?}");
}

#[tokio::test]
async fn the_secret_of_an_invite_never_travels() {
    let host = Host::start(1).await;
    let invite = invite(&host);
    host.ledger.invites.lock().expect("no holder panics").push(invite.principal().id());
    assert_eq!(said(redeem(&invite).await), "entered");
    let joins = host.ledger.joins.lock().expect("no holder panics");
    let sent = mictlan::wire::encode(&joins[0]);
    assert!(!sent.windows(16).any(|part| part == invite.secret.as_ref()));
}
