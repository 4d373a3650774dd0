//! The asking side of `/api/v4`: one method a call, over a pool of HTTP/1.1 connections.
//!
//! Owns: which path a call has, and how a reply or its absence is read.
//! Never: trusts a length: each reply has a limit, and a body that exceeds it is dropped.
//! Invariant: a chunk that is sent is not copied; one that arrives is copied once.

use crate::http::unix::{Challenge, Prover, Token};
use crate::link::{LinkError, Trouble};
use crate::peer::RaftCall;
use bytes::{Bytes, BytesMut};
use mictlan::cluster::place::Copies;
use mictlan::id::{ChunkId, Position, PrincipalId};
use mictlan::wire::chunks::{self, CHUNK_BYTES_MAX};
use mictlan::wire::{
    self, Answer, Append, Barrier, CloseSession, Failure, Follow, Head, Heartbeat, HeartbeatReply,
    Join, Joined, MESSAGE_BYTES_MAX, OpenSession, Outcome, PAGE_BYTES_MAX, Page, Query, Receipt,
    SessionOpened, Status, Welcome,
};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, RANGE};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A Raft message may carry a snapshot's piece or a group of entries.
pub const RAFT_BYTES_MAX: usize = 32 << 20;
/// A proof of a range adds 64 bytes per KiB pair at most, so less than the chunk again.
const PROOF_BYTES_MAX: usize = 2 * CHUNK_BYTES_MAX;

/// With chunks that are put: how many copies there shall be of each.
pub const COPIES: &str = "mictlan-copies";

/// One peer, as reached over one pool.
#[derive(Clone)]
pub struct Client {
    pool: reqwest::Client,
    /// `https://KEY.mictlan/api/v4/`: the host name is the key that the handshake must prove.
    base: String,
    peer: PrincipalId,
    /// On a Unix socket, where no handshake proves who asks.
    prover: Option<Arc<Prover>>,
}

/// How a call is made, beside its path and body.
#[derive(Clone, Copy)]
struct Terms {
    deadline: Duration,
    /// Made twice it changes nothing, so a lost reply is only a failure here.
    repeatable: bool,
    reply_bytes_max: usize,
}

type Answered<T> = Result<T, LinkError>;

impl Client {
    pub fn new(pool: reqwest::Client, base: String, peer: PrincipalId) -> Self {
        Self { pool, base, peer, prover: None }
    }

    pub fn proving(self, prover: Prover) -> Self {
        Self { prover: Some(Arc::new(prover)), ..self }
    }

    /// The same connections, once the peer's whole key is known.
    pub fn of(self, peer: PrincipalId) -> Self {
        Self { peer, ..self }
    }

    pub fn peer(&self) -> PrincipalId {
        self.peer
    }

    pub async fn put(
        &self,
        deadline: Duration,
        chunks: Vec<Bytes>,
        copies: Option<Copies>,
    ) -> Answered<Vec<Receipt>> {
        let length = chunks::body_bytes(&chunks);
        let parts = chunks::parts(&chunks).into_iter().map(Ok::<_, std::io::Error>);
        let body = Body::wrap_stream(futures::stream::iter(parts));
        let mut request = self.request(Method::POST, "chunks/put").header(CONTENT_LENGTH, length);
        if let Some(copies) = copies {
            request = request.header(COPIES, copies.count());
        }
        self.message(request.body(body), terms(deadline, true)).await
    }

    pub async fn have(
        &self,
        deadline: Duration,
        chunks: Vec<ChunkId>,
    ) -> Answered<Vec<Option<Receipt>>> {
        self.post("chunks/have", deadline, true, &chunks).await
    }

    pub async fn get(&self, deadline: Duration, chunk: ChunkId) -> Answered<Option<Bytes>> {
        let terms = Terms { reply_bytes_max: CHUNK_BYTES_MAX, ..terms(deadline, true) };
        self.found(self.request(Method::GET, &format!("chunks/{chunk}")), terms).await
    }

    pub async fn fetch(&self, deadline: Duration, chunk: ChunkId) -> Answered<Option<Bytes>> {
        let terms = Terms { reply_bytes_max: CHUNK_BYTES_MAX, ..terms(deadline, true) };
        self.found(self.request(Method::GET, &chunk.to_string()), terms).await
    }

    pub async fn get_range(
        &self,
        deadline: Duration,
        chunk: ChunkId,
        range: Range<u64>,
    ) -> Answered<Option<Bytes>> {
        let terms = Terms { reply_bytes_max: PROOF_BYTES_MAX, ..terms(deadline, true) };
        let path = format!("chunks/{chunk}/proof/{}/{}", range.start, range.end);
        self.found(self.request(Method::GET, &path), terms).await
    }

    pub async fn append(&self, deadline: Duration, what: Append) -> Answered<Outcome> {
        self.post("append", deadline, false, &what).await
    }

    pub async fn open_session(
        &self,
        deadline: Duration,
        open: OpenSession,
    ) -> Answered<SessionOpened> {
        self.post("sessions/open", deadline, false, &open).await
    }

    pub async fn close_session(&self, deadline: Duration, close: CloseSession) -> Answered<()> {
        self.post("sessions/close", deadline, false, &close).await
    }

    pub async fn heartbeat(
        &self,
        deadline: Duration,
        heartbeat: Heartbeat,
    ) -> Answered<HeartbeatReply> {
        self.post("sessions/heartbeat", deadline, true, &heartbeat).await
    }

    pub async fn follow(&self, deadline: Duration, follow: Follow) -> Answered<Page> {
        let request = self.request(Method::POST, "follow").body(wire::encode(&follow));
        let terms = Terms { reply_bytes_max: PAGE_BYTES_MAX, ..terms(deadline, true) };
        self.message(request, terms).await
    }

    pub async fn head(&self, deadline: Duration) -> Answered<Head> {
        self.message(self.request(Method::GET, "head"), terms(deadline, true)).await
    }

    pub async fn read_position(&self, deadline: Duration, barrier: Barrier) -> Answered<Position> {
        self.post("read-position", deadline, true, &barrier).await
    }

    pub async fn ledger_file(
        &self,
        deadline: Duration,
        path: String,
        range: Option<Range<u64>>,
    ) -> Answered<Option<Bytes>> {
        let mut request = self.request(Method::GET, &format!("ledger/{path}"));
        if let Some(range) = range {
            // HTTP names the last byte, not the one after it.
            let last = range.end.saturating_sub(1);
            request = request.header(RANGE, format!("bytes={}-{last}", range.start));
        }
        let terms = Terms { reply_bytes_max: PAGE_BYTES_MAX, ..terms(deadline, true) };
        self.found(request, terms).await
    }

    pub async fn query(&self, deadline: Duration, query: Query) -> Answered<Answer> {
        self.post("query", deadline, true, &query).await
    }

    pub async fn status(&self, deadline: Duration) -> Answered<Status> {
        self.message(self.request(Method::GET, "status"), terms(deadline, true)).await
    }

    /// Before anything of an invite is sent: which network this peer belongs to.
    pub async fn welcome(&self, deadline: Duration) -> Answered<Welcome> {
        self.message(self.request(Method::GET, "join"), terms(deadline, true)).await
    }

    pub async fn join(&self, deadline: Duration, join: Join) -> Answered<Joined> {
        self.post("join", deadline, false, &join).await
    }

    pub async fn raft(&self, deadline: Duration, call: RaftCall, body: Bytes) -> Answered<Bytes> {
        let request = self.request(Method::POST, &format!("raft/{}", call.path()));
        let terms = Terms { reply_bytes_max: RAFT_BYTES_MAX, ..terms(deadline, true) };
        self.bytes(request.body(body), terms).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.pool.request(method, format!("{}{path}", self.base))
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Duration,
        repeatable: bool,
        question: &Q,
    ) -> Answered<A> {
        let request = self.request(Method::POST, path).body(wire::encode(question));
        self.message(request, terms(deadline, repeatable)).await
    }

    async fn message<A: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        terms: Terms,
    ) -> Answered<A> {
        let bytes = self.bytes(request, terms).await?;
        wire::decode(&bytes).map_err(|why| {
            LinkError::on_the_way(self.peer, Trouble::Rubbish(why.to_string()), terms.repeatable)
        })
    }

    async fn bytes(&self, request: RequestBuilder, terms: Terms) -> Answered<Bytes> {
        self.found(request, terms).await?.ok_or_else(|| {
            let why = Trouble::Rubbish("no such route".to_owned());
            LinkError::FailedHere { peer: self.peer, why }
        })
    }

    /// Sends and reads; 204 is "there is none".
    async fn found(&self, request: RequestBuilder, terms: Terms) -> Answered<Option<Bytes>> {
        let lost = |why| LinkError::on_the_way(self.peer, why, terms.repeatable);
        let reply = match &self.prover {
            None => self.send(request, terms).await?,
            Some(prover) => self.send_proven(prover, request, terms).await?,
        };
        match reply.status() {
            StatusCode::NO_CONTENT => Ok(None),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                let body = collect(reply, terms.reply_bytes_max, terms.deadline).await;
                body.map(Some).map_err(lost)
            }
            // An unknown key's refusal has no body, so that it tells nothing.
            StatusCode::FORBIDDEN => {
                Err(LinkError::said(self.peer, Failure::NotAllowed, terms.repeatable))
            }
            status => {
                let body = collect(reply, MESSAGE_BYTES_MAX, terms.deadline).await.map_err(lost)?;
                match wire::decode::<Failure>(&body) {
                    Ok(why) => Err(LinkError::said(self.peer, why, terms.repeatable)),
                    Err(_) => Err(lost(Trouble::Rubbish(format!("HTTP status {status}")))),
                }
            }
        }
    }
}

impl Client {
    async fn send(&self, request: RequestBuilder, terms: Terms) -> Answered<Response> {
        let sent = request.timeout(terms.deadline).send().await;
        sent.map_err(|why| {
            LinkError::on_the_way(self.peer, trouble(why, terms.deadline), terms.repeatable)
        })
    }

    /// With the token of an earlier proof; once more with a new one when the peer has restarted.
    async fn send_proven(
        &self,
        prover: &Prover,
        request: RequestBuilder,
        terms: Terms,
    ) -> Answered<Response> {
        let known = prover.token();
        let token = match known {
            Some(token) => token,
            None => self.prove(prover, terms).await?,
        };
        // A body that streams cannot be sent twice; then the next call proves anew.
        let again = request.try_clone();
        let reply = self.send(request.header(AUTHORIZATION, bearer(token)), terms).await?;
        if reply.status() != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        prover.keep(None);
        match again {
            Some(again) if known.is_some() => {
                let token = self.prove(prover, terms).await?;
                self.send(again.header(AUTHORIZATION, bearer(token)), terms).await
            }
            _ => Ok(reply),
        }
    }

    async fn prove(&self, prover: &Prover, terms: Terms) -> Answered<Token> {
        let failed =
            |why: String| LinkError::FailedHere { peer: self.peer, why: Trouble::NotReached(why) };
        let hello = prover.hello().map_err(|why| failed(why.to_string()))?;
        let challenge: Challenge = self.bare("hello", &hello, terms).await?;
        let proof = prover.prove(hello, &challenge).map_err(|why| failed(why.to_string()))?;
        let token: Token = self.bare("prove", &proof, terms).await?;
        prover.keep(Some(token));
        Ok(token)
    }

    /// A call that needs no token: the two that make one.
    async fn bare<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
        terms: Terms,
    ) -> Answered<A> {
        let request = self.request(Method::POST, path).body(wire::encode(question));
        let reply = self.send(request, Terms { repeatable: true, ..terms }).await?;
        let failed = |why| LinkError::FailedHere { peer: self.peer, why };
        if reply.status() != StatusCode::OK {
            let why = format!("HTTP status {} to {path}", reply.status());
            return Err(failed(Trouble::Rubbish(why)));
        }
        let body = collect(reply, MESSAGE_BYTES_MAX, terms.deadline).await.map_err(failed)?;
        wire::decode(&body).map_err(|why| failed(Trouble::Rubbish(why.to_string())))
    }
}

fn bearer(token: Token) -> String {
    format!("Bearer {}", hex::encode(token.0))
}

fn terms(deadline: Duration, repeatable: bool) -> Terms {
    Terms { deadline, repeatable, reply_bytes_max: MESSAGE_BYTES_MAX }
}

/// Reads a body into one buffer, made once when its length is known.
async fn collect(mut reply: Response, max: usize, deadline: Duration) -> Result<Bytes, Trouble> {
    let length = reply.content_length().unwrap_or(0);
    if length > max as u64 {
        return Err(Trouble::Rubbish(format!("a reply of {length} bytes")));
    }
    let mut body = BytesMut::with_capacity(length as usize);
    while let Some(piece) = reply.chunk().await.map_err(|why| trouble(why, deadline))? {
        if body.len() + piece.len() > max {
            return Err(Trouble::Rubbish(format!("a reply of more than {max} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

fn trouble(why: reqwest::Error, deadline: Duration) -> Trouble {
    // The cause is at the end of the chain; what stands before it repeats the URL.
    let mut cause: &dyn Error = &why;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let sentence = cause.to_string();
    match why {
        _ if why.is_connect() => Trouble::NotReached(sentence),
        _ if why.is_timeout() => Trouble::Late(deadline),
        _ => Trouble::Broken(sentence),
    }
}
