//! `/api/v4`: which request is which of a peer's calls.
//!
//! Owns: paths, sizes of bodies, and the status that stands for each failure.
//! Never: answers an unknown key with anything but 403 and an empty body, except `join`: not even
//! whether a path exists.
//! Invariant: a body is held only after its sender may send it, and within the port's budget.

use crate::counts::COUNTS;
use crate::http::admission::Limits;
use crate::http::bodies;
use crate::http::budget::{Budget, Budgets, Share};
use crate::http::client::{COPIES, RAFT_BYTES_MAX};
use crate::http::unix::{Door, Hello, Proof};
use crate::peer::{Caller, Peer, RaftCall};
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, extract};
use bytes::Bytes;
use mictlan::cluster::place::Copies;
use mictlan::id::ChunkId;
use mictlan::wire::chunks::CHUNK_BYTES_MAX;
use mictlan::wire::{self, Failure, MESSAGE_BYTES_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tower::ServiceExt;

const JOIN: &str = "/api/v4/join";
const HELLO: &str = "/api/v4/hello";
const PROVE: &str = "/api/v4/prove";
/// What an unknown key may send: an `id.principal` record.
const JOIN_BYTES_MAX: usize = 32 << 10;

/// A heartbeat or a vote between voters.
const URGENT_BYTES_MAX: usize = 16 << 10;
/// A reply of at most this is bounded by the number of connections, and never refused for room.
const SHORT_BYTES_MAX: usize = 64 << 10;

/// What every request sees. Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub peer: Arc<Peer>,
    /// On the Unix socket: where proofs become tokens.
    pub door: Option<Arc<Door>>,
    pub limits: Limits,
    pub budgets: Arc<Budgets>,
}

impl App {
    pub fn new(peer: Arc<Peer>, door: Option<Arc<Door>>, limits: Limits) -> Self {
        let budgets = Arc::new(Budgets::new(&limits));
        Self { peer, door, limits, budgets }
    }
}

pub fn router(app: App) -> Router {
    let calls = Router::new()
        .route("/chunks/put", post(put_batch))
        .route("/chunks/have", post(have))
        .route("/chunks/{address}", get(chunk).put(put_one))
        .route("/chunks/{address}/proof/{from}/{to}", get(proof))
        .route("/append", post(append))
        .route("/sessions/open", post(open_session))
        .route("/sessions/close", post(close_session))
        .route("/sessions/heartbeat", post(heartbeat))
        .route("/follow", post(follow))
        .route("/head", get(head))
        .route("/read-position", post(read_position))
        .route("/ledger/{*path}", get(ledger_file))
        .route("/query", post(query))
        .route("/status", get(status))
        .route("/raft/{call}", post(raft))
        .route("/hello", post(hello))
        .route("/prove", post(prove))
        .route("/join", get(welcome).post(join))
        .route("/{address}", get(from_whatever_peer));
    Router::new().nest("/api/v4", calls).layer(DefaultBodyLimit::disable()).with_state(app)
}

/// Answers one request. The gate stands before the router, whose own replies would tell a
/// stranger which paths exist and what they take (`Allow`).
pub async fn answer(app: &App, router: Router, request: Request) -> Response {
    let (began, path) = (Instant::now(), request.uri().path().to_owned());
    let received = request.body().size_hint().exact().unwrap_or(0);
    let response = match gate(app, request) {
        Ok(request) => router.oneshot(request).await.unwrap_or_else(|never| match never {}),
        Err(status) => status.into_response(),
    };
    let sent = response.body().size_hint().exact().unwrap_or(0);
    COUNTS.request(&path, response.status().as_u16(), began.elapsed(), received, sent);
    response
}

/// Nobody passes whose key is unknown; only then does a path mean anything.
fn gate(app: &App, mut request: Request) -> Result<Request, StatusCode> {
    let path = request.uri().path();
    if let Some(door) = &app.door {
        if path == HELLO || path == PROVE {
            return Ok(request);
        }
        let caller = by_token(door, request.headers()).ok_or(StatusCode::UNAUTHORIZED)?;
        request.extensions_mut().insert(caller);
    }
    let caller = request.extensions().get::<Caller>();
    let passes = caller
        .is_some_and(|caller| request.uri().path() == JOIN || app.peer.knows(&caller.principal));
    if passes { Ok(request) } else { Err(StatusCode::FORBIDDEN) }
}

fn by_token(door: &Door, headers: &HeaderMap) -> Option<Caller> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
    let mut token = [0; 32];
    hex::decode_to_slice(text, &mut token).ok()?;
    let principal = door.principal_of(&token)?;
    Some(Caller { principal, local: true })
}

/// A failure on its way out.
pub struct Refusal(pub Failure);

impl From<Failure> for Refusal {
    fn from(why: Failure) -> Self {
        Self(why)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            Failure::NotAllowed => return StatusCode::FORBIDDEN.into_response(),
            Failure::Malformed(_) | Failure::WrongAddress(_) => StatusCode::BAD_REQUEST,
            Failure::Refused(_) | Failure::InviteRefused(_) => StatusCode::CONFLICT,
            Failure::NotLeader { .. } => StatusCode::MISDIRECTED_REQUEST,
            Failure::NotHere(_) => StatusCode::NOT_IMPLEMENTED,
            Failure::StoreFull => StatusCode::INSUFFICIENT_STORAGE,
            Failure::StoreFailed(_)
            | Failure::Busy(_)
            | Failure::ChunkDamaged(_)
            | Failure::NotFetched(_) => StatusCode::SERVICE_UNAVAILABLE,
            Failure::DeadlinePassed => StatusCode::GATEWAY_TIMEOUT,
            Failure::OutcomeUnknown(_) => StatusCode::BAD_GATEWAY,
        };
        (status, wire::encode(&self.0)).into_response()
    }
}

type Reply = Result<Response, Refusal>;
type Who = Extension<Caller>;

fn message<T: Serialize>(reply: T) -> Reply {
    Ok(wire::encode(&reply).into_response())
}

fn found(bytes: Option<Bytes>) -> Reply {
    Ok(match bytes {
        Some(bytes) => bytes.into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

fn malformed(why: impl ToString) -> Refusal {
    Refusal(Failure::Malformed(why.to_string()))
}

/// A member's message, and what it holds until it is answered.
async fn read<T: DeserializeOwned>(app: &App, body: Body) -> Result<(T, Share), Refusal> {
    let (bytes, held) = bodies::whole(app, &app.budgets.messages, body, MESSAGE_BYTES_MAX).await?;
    Ok((wire::decode(&bytes).map_err(malformed)?, held))
}

/// A message of someone who is nobody yet.
async fn knock<T: DeserializeOwned>(app: &App, body: Body) -> Result<(T, Share), Refusal> {
    let (bytes, held) = bodies::whole(app, &app.budgets.strangers, body, JOIN_BYTES_MAX).await?;
    Ok((wire::decode(&bytes).map_err(malformed)?, held))
}

/// A reply that may be long: then it counts until its reader has it.
fn long(budget: &Budget, bytes: Option<Bytes>) -> Reply {
    match bytes {
        Some(bytes) if bytes.len() > SHORT_BYTES_MAX => {
            found(Some(budget.take_now(bytes.len())?.keep(bytes)))
        }
        short => found(short),
    }
}

fn address(text: &str) -> Result<ChunkId, Refusal> {
    ChunkId::from_hex(text).ok_or_else(|| malformed("not a chunk's address"))
}

async fn put_batch(
    State(app): State<App>,
    Extension(caller): Who,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    app.peer.may_put(caller)?;
    let copies = copies(&headers)?;
    let (chunks, _held) = bodies::batch(&app, length(&headers)?, body).await?;
    message(app.peer.put(caller, chunks, copies).await?)
}

async fn put_one(
    State(app): State<App>,
    Extension(caller): Who,
    Path(text): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    app.peer.may_put(caller)?;
    let chunk = address(&text)?;
    let (checked, _held) = bodies::chunk(&app, chunk, length(&headers)?, body).await?;
    message(app.peer.put_checked(caller, vec![checked]).await?)
}

async fn have(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (chunks, _held) = read(&app, body).await?;
    message(app.peer.have(caller, chunks).await?)
}

/// The whole chunk as this peer stores it, or with `Range` a part of its bytes: what `curl` and
/// `b3sum` want.
async fn chunk(
    State(app): State<App>,
    Extension(caller): Who,
    Path(text): Path<String>,
    headers: HeaderMap,
) -> Reply {
    let (chunk, range) = (address(&text)?, range(&headers)?);
    let held = app.budgets.replies.take(app.peer.stored_bytes(caller, chunk)?).await?;
    let bytes = app.peer.get(caller, chunk).await?;
    part(bytes.map(|bytes| held.keep(bytes)), range)
}

/// The same, fetched from the other peers if this one lacks it.
async fn from_whatever_peer(
    State(app): State<App>,
    Extension(caller): Who,
    Path(text): Path<String>,
    headers: HeaderMap,
) -> Reply {
    let (chunk, range) = (address(&text)?, range(&headers)?);
    // How long one is that is not here shows when it comes.
    let most = match app.peer.stored_bytes(caller, chunk) {
        Ok(0) | Err(Failure::StoreFailed(_) | Failure::NotHere(_)) => CHUNK_BYTES_MAX,
        here => here?,
    };
    let held = app.budgets.replies.take(most).await?;
    let bytes = app.peer.fetch(caller, chunk).await?;
    part(bytes.map(|bytes| held.keep(bytes)), range)
}

async fn proof(
    State(app): State<App>,
    Extension(caller): Who,
    Path((text, from, to)): Path<(String, u64, u64)>,
) -> Reply {
    let chunk = address(&text)?;
    let held = app.budgets.replies.take(app.peer.stored_bytes(caller, chunk)?).await?;
    let proof = app.peer.get_range(caller, chunk, from..to).await?;
    found(proof.map(|proof| held.keep(proof)))
}

async fn append(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (append, _held) = read(&app, body).await?;
    message(app.peer.append(caller, append).await?)
}

async fn open_session(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (open, _held) = read(&app, body).await?;
    message(app.peer.open_session(caller, open).await?)
}

async fn close_session(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (close, _held) = read(&app, body).await?;
    message(app.peer.close_session(caller, close).await?)
}

async fn heartbeat(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (heartbeat, _held) = read(&app, body).await?;
    message(app.peer.heartbeat(caller, heartbeat).await?)
}

async fn follow(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (follow, _held) = read(&app, body).await?;
    let page = app.peer.follow(caller, follow).await?;
    long(&app.budgets.pages, Some(wire::encode(&page).into()))
}

async fn head(State(app): State<App>, Extension(caller): Who) -> Reply {
    message(app.peer.head(caller).await?)
}

async fn read_position(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (barrier, _held) = read(&app, body).await?;
    message(app.peer.read_position(caller, barrier).await?)
}

async fn ledger_file(
    State(app): State<App>,
    Extension(caller): Who,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Reply {
    let file = app.peer.ledger_file(caller, path, range(&headers)?).await?;
    long(&app.budgets.pages, file)
}

async fn query(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (query, _held) = read(&app, body).await?;
    let answer = app.peer.query(caller, query).await?;
    long(&app.budgets.pages, Some(wire::encode(&answer).into()))
}

async fn status(State(app): State<App>, Extension(caller): Who) -> Reply {
    message(app.peer.status(caller).await?)
}

async fn raft(
    State(app): State<App>,
    Extension(caller): Who,
    extract::Path(call): Path<String>,
    body: Body,
) -> Reply {
    let call = RaftCall::ALL.into_iter().find(|known| known.path() == call);
    let call = call.ok_or_else(|| malformed("no such message between voters"))?;
    app.peer.may_vote(caller)?;
    let (body, _held) = match call {
        // A term is lost if these wait behind entries.
        RaftCall::Heartbeat | RaftCall::Vote | RaftCall::Stand | RaftCall::Recall => {
            (bodies::small(&app, body, URGENT_BYTES_MAX).await?, None)
        }
        _ => {
            let budget = &app.budgets.voters;
            let (body, held) = bodies::whole(&app, budget, body, RAFT_BYTES_MAX).await?;
            (body, Some(held))
        }
    };
    let reply = app.peer.raft(caller, call, body).await?;
    long(&app.budgets.voters, Some(reply))
}

async fn welcome(State(app): State<App>) -> Reply {
    message(app.peer.welcome().await?)
}

async fn join(State(app): State<App>, Extension(caller): Who, body: Body) -> Reply {
    let (join, _held) = knock(&app, body).await?;
    message(app.peer.join(caller, join).await?)
}

async fn hello(State(app): State<App>, body: Body) -> Reply {
    let door = app.door.clone().ok_or(Failure::NotAllowed)?;
    let (hello, _held): (Hello, Share) = knock(&app, body).await?;
    message(door.challenge(hello).map_err(|why| Failure::Busy(why.to_string()))?)
}

async fn prove(State(app): State<App>, body: Body) -> Reply {
    let door = app.door.clone().ok_or(Failure::NotAllowed)?;
    let (proof, _held): (Proof, Share) = knock(&app, body).await?;
    let token = door.admit(&proof).map_err(|why| Failure::Busy(why.to_string()))?;
    message(token.ok_or(Failure::NotAllowed)?)
}

fn length(headers: &HeaderMap) -> Result<usize, Refusal> {
    let text = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = text.and_then(|text| text.parse().ok());
    length.ok_or_else(|| malformed("a body of chunks needs a Content-Length"))
}

fn copies(headers: &HeaderMap) -> Result<Option<Copies>, Refusal> {
    let Some(value) = headers.get(COPIES) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok()).and_then(Copies::new);
    parsed.map(Some).ok_or_else(|| malformed(format!("{COPIES} must be a number from 1 to 255")))
}

/// `bytes=A-B` alone: one range, with both ends.
fn range(headers: &HeaderMap) -> Result<Option<Range<u64>>, Refusal> {
    let Some(value) = headers.get(RANGE) else { return Ok(None) };
    let parse = || {
        let (from, last) = value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let (from, last): (u64, u64) = (from.parse().ok()?, last.parse().ok()?);
        (from <= last && last < u64::MAX).then(|| from..last + 1)
    };
    parse().map(Some).ok_or_else(|| malformed("a Range must be bytes=FIRST-LAST"))
}

fn part(bytes: Option<Bytes>, range: Option<Range<u64>>) -> Reply {
    let (Some(whole), Some(range)) = (&bytes, range) else { return found(bytes) };
    let len = whole.len() as u64;
    if range.start >= len {
        return Ok(StatusCode::RANGE_NOT_SATISFIABLE.into_response());
    }
    let end = range.end.min(len);
    let shown = format!("bytes {}-{}/{len}", range.start, end - 1);
    let slice = whole.slice(range.start as usize..end as usize);
    Ok((StatusCode::PARTIAL_CONTENT, [(CONTENT_RANGE, shown)], slice).into_response())
}
