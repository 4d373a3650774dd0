//! Voters that are silent, lie, or are behind, as links that nothing is sent over.

use super::*;
use crate::http::client::Client;
use crate::link::Trouble;
use mictlan::id::{Label, PrincipalId};

fn voter(n: u8) -> Known {
    let principal = PrincipalId([n; 32]);
    let info = PeerInfo {
        id: PeerId(n.into()),
        name: Label::parse("voter").expect("a name"),
        principal,
        addresses: Vec::new(),
        storage: true,
        voter: true,
        domain: String::new(),
        weight: 1,
    };
    let nowhere = Client::new(reqwest::Client::new(), "http://nowhere/".to_owned(), principal);
    Known { info, link: Link::Tls(nowhere) }
}

fn does_not_lead(at: PrincipalId, leader: u64) -> LinkError {
    let leader = Some(PeerId(leader));
    LinkError::said(at, Failure::NotLeader { leader }, false)
}

#[tokio::test]
async fn a_silent_voter_holds_nobody_up() {
    let network = Network::new([1, 2, 3].map(voter).to_vec());
    let (asked, long) = (Mutex::new(Vec::new()), Duration::from_secs(60));
    // The first has stopped, and the second does not know it yet.
    let call = |link: Link| {
        let at = link.peer();
        asked.lock().expect("no panic").push(at.0[0]);
        async move {
            match at.0[0] {
                1 => std::future::pending().await,
                2 => Err(does_not_lead(at, 1)),
                _ => Ok(at),
            }
        }
    };
    let (word, certain) = network.first_word(PATIENCE, long, call).await.expect("a word");
    assert_eq!(
        (word.expect("an answer").0[0], certain),
        (3, false),
        "the first may have done it as well"
    );
    assert_eq!(*asked.lock().expect("no panic"), [1, 2, 3], "each once");
    assert_eq!(network.voters_leader_first()[0].info.id, PeerId(3), "asked first from now on");
}

#[tokio::test]
async fn a_voter_that_is_slow_is_heard_whoever_was_asked_since() {
    let network = Network::new([1, 2, 3].map(voter).to_vec());
    let (others, both) = tokio::sync::watch::channel(0);
    let call = |link: Link| {
        let (at, others, mut both) = (link.peer(), others.clone(), both.clone());
        async move {
            if at.0[0] > 1 {
                others.send_modify(|others| *others += 1);
                return Err(does_not_lead(at, 1));
            }
            both.wait_for(|others| *others >= 2).await.expect("it is there");
            Ok(at)
        }
    };
    let answered = network.voter(Duration::from_secs(60), call).await;
    assert_eq!(answered.expect("answered").0[0], 1);
}

fn refuses(at: PrincipalId) -> LinkError {
    LinkError::said(at, Failure::NotAllowed, false)
}

#[tokio::test]
async fn one_voter_that_refuses_is_not_believed_alone() {
    let network = Network::new([1, 2, 3].map(voter).to_vec());
    // The first lies: the third leads.
    let call = |link: Link| async move {
        let at = link.peer();
        match at.0[0] {
            1 => Err(refuses(at)),
            2 => Err(does_not_lead(at, 3)),
            _ => Ok(at),
        }
    };
    let answered = network.voter(Duration::from_secs(60), call).await;
    assert_eq!(answered.expect("answered").0[0], 3);
}

#[tokio::test]
async fn the_leader_s_refusal_counts_when_most_know_it_as_leader() {
    let (network, asked) = (Network::new([1, 2, 3].map(voter).to_vec()), Mutex::default());
    let call = |link: Link| {
        let at = link.peer();
        let asked: &Mutex<Vec<u8>> = &asked;
        asked.lock().expect("no panic").push(at.0[0]);
        async move {
            match at.0[0] {
                1 => Err::<(), _>(refuses(at)),
                _ => Err(does_not_lead(at, 1)),
            }
        }
    };
    let refused = network.first_word(PATIENCE, Duration::from_secs(60), call).await;
    let (word, certain) = refused.expect("a word");
    assert_eq!((word, certain), (Err(Failure::NotAllowed), true));
    assert_eq!(*asked.lock().expect("no panic"), [1, 2], "two of three are enough");
}

#[tokio::test]
async fn a_refusal_that_nobody_speaks_against_counts() {
    let call = |link: Link| async move {
        let at = link.peer();
        match at.0[0] {
            2 => Err::<(), _>(refuses(at)),
            _ => Err(LinkError::on_the_way(at, Trouble::NotReached(String::new()), true)),
        }
    };
    for voters in [vec![2], vec![1, 2, 3]] {
        let network = Network::new(voters.into_iter().map(voter).collect());
        let refused = network.voter(Duration::from_secs(60), call).await;
        assert!(matches!(refused, Err(CallError::Refused(Failure::NotAllowed))), "{refused:?}");
    }
}

#[tokio::test]
async fn what_most_voters_say_counts_and_not_who_is_first() {
    let network = Network::new([1, 2, 3].map(voter).to_vec());
    let asked = Mutex::new(0);
    let call = |link: Link| {
        let asked = &asked;
        async move {
            match link.peer().0[0] {
                // It lies, and is the first to answer.
                1 => return Ok(9),
                2 => return Ok(4),
                _ => {}
            }
            let mut asked = asked.lock().expect("no panic");
            *asked += 1;
            if *asked > 1 { Ok(4) } else { Err("it is behind".to_owned()) }
        }
    };
    let said = network.most_say(Duration::from_secs(60), call).await;
    assert_eq!(said.expect("two of three agree"), 4);
}
