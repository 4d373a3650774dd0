//! Bodies in sum: what many clients send or do not read has a bound, and starves nobody else.

use super::*;
use crate::http::routes::{App, answer, router};
use crate::peer::Caller;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use futures::poll;
use mictlan::hash::address;
use mictlan::wire;

/// A port without its socket: two messages or one chunk at a time, and nobody waits for room.
fn app(host: &Host) -> App {
    let limits = Limits {
        message_bytes_max: 2 << 20,
        voter_bytes_max: 32 << 20,
        stranger_bytes_max: 32 << 10,
        reply_bytes_max: 1 << 20,
        budget_wait: Duration::from_millis(20),
        ..limits()
    };
    App::new(host.peer.clone(), None, limits)
}

/// One request of principal `n`, answered to its head.
async fn ask(app: &App, n: u8, method: &str, path: &str, body: Body) -> Response {
    let caller = Caller { principal: principal(n).id(), local: false };
    let request = Request::builder().method(method).uri(format!("/api/v4/{path}"));
    let request = request.extension(caller).body(body).expect("a request");
    answer(app, router(app.clone()), request).await
}

/// A body that nobody finishes.
fn endless() -> Body {
    Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>())
}

async fn query(app: &App) -> StatusCode {
    let body = wire::encode(&Query::Volumes);
    ask(app, 4, "POST", "query", body.into()).await.status()
}

#[tokio::test]
async fn messages_that_never_end_fill_their_budget_and_no_other() {
    let host = Host::start(1).await;
    let app = app(&host);
    assert_eq!(query(&app).await, StatusCode::OK);
    let mut crowd: Vec<_> =
        (0..8).map(|_| Box::pin(ask(&app, 4, "POST", "query", endless()))).collect();
    for one in &mut crowd {
        assert!(poll!(one).is_pending(), "two have all the room, the others wait");
    }
    assert_eq!(query(&app).await, StatusCode::SERVICE_UNAVAILABLE);
    for call in ["heartbeat", "vote", "append"] {
        let voter = ask(&app, 2, "POST", &format!("raft/{call}"), Body::from("x")).await;
        assert_eq!(voter.status(), StatusCode::OK, "a voter's {call} has its own room");
    }
    let welcome = ask(&app, 9, "GET", "join", Body::empty()).await;
    assert_eq!(welcome.status(), StatusCode::OK);
    drop(crowd);
    assert_eq!(query(&app).await, StatusCode::OK);
}

#[tokio::test]
async fn a_stranger_who_never_ends_takes_no_room_of_members() {
    let host = Host::start(1).await;
    let app = app(&host);
    let mut knocking = Box::pin(ask(&app, 9, "POST", "join", endless()));
    assert!(poll!(&mut knocking).is_pending());
    let other = ask(&app, 8, "POST", "join", endless()).await;
    assert_eq!(other.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(query(&app).await, StatusCode::OK);
}

#[tokio::test]
async fn chunks_that_nobody_reads_are_bounded_in_sum() {
    let host = Host::start(1).await;
    let app = app(&host);
    let chunk = Bytes::from(vec![7; 600_000]);
    let path = format!("chunks/{}", address(&chunk));
    within(host.link_of(3).put(vec![chunk.clone()])).await.expect("room for a chunk");
    let unread = ask(&app, 4, "GET", &path, Body::empty()).await;
    assert_eq!(unread.status(), StatusCode::OK);
    let second = ask(&app, 4, "GET", &path, Body::empty()).await;
    assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
    let missing = format!("chunks/{}", address(b"missing"));
    let missing = ask(&app, 4, "GET", &missing, Body::empty()).await;
    assert_eq!(missing.status(), StatusCode::NO_CONTENT, "nothing takes no room");
    let read = axum::body::to_bytes(unread.into_body(), usize::MAX).await.expect("a body");
    assert_eq!(read, chunk);
    let kept = read.slice(..1);
    drop(read);
    let still = ask(&app, 4, "GET", &path, Body::empty()).await;
    assert_eq!(still.status(), StatusCode::SERVICE_UNAVAILABLE, "a part keeps all of it");
    drop(kept);
    let after = ask(&app, 4, "GET", &path, Body::empty()).await;
    assert_eq!(after.status(), StatusCode::OK);
}
