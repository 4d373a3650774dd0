//! A peer that lies: what answers at a real peer's port, with its key, is made here.
//!
//! Owns: its connections and how it answers each request.
//! Never: takes part in ordering, or keeps a chunk.

use crate::three::Peer;
use mictlan::hash;
use mictlan::id::{ChunkId, PeerId, TimeMs};
use mictlan::wire::chunks::Unbatch;
use mictlan::wire::{self, Receipt, Status, StoreStatus};
use mictlan_daemon::cli::connect;
use mictlan_daemon::config::{Config, Paths};
use mictlan_daemon::host;
use mictlan_daemon::http::tls;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// Receipts for all that comes, of which it keeps nothing; it has every chunk that is named,
    /// and shows other bytes.
    Content,
    /// The same, with receipts for something else.
    Receipts,
    /// What it says is no HTTP.
    Rubbish,
    /// It hears everything and says nothing.
    Silence,
}

/// What its connections share.
struct Shared {
    lie: Mutex<Lie>,
    status: Status,
    /// The last chunk that came: what it shows is nearly that.
    last: Mutex<Vec<u8>>,
    shown: AtomicU64,
    receipts: AtomicU64,
}

/// It listens until this is dropped.
pub struct Liar {
    pub id: PeerId,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

impl Liar {
    /// Kills the peer and answers in its place.
    pub fn in_place_of(peer: &Peer, lie: Lie) -> Self {
        peer.kill();
        let paths = Paths::below(&peer.home.path().join("home"));
        let config = Config::load(&paths.config_file()).expect("a configuration");
        let (_, configured) = config.networks.iter().next().expect("a network");
        let serve = configured.serve.as_ref().expect("it is a peer");
        let principal = Arc::new(connect::load_key(&paths, &serve.key).expect("a key file"));
        let store = StoreStatus {
            capacity_bytes: 1 << 40,
            used_bytes: 0,
            chunks: 0,
            damaged_chunks: 0,
            is_new: false,
            out_of_service: None,
        };
        let id = PeerId(serve.id);
        let status = Status {
            network: configured.id,
            principal: principal.id(),
            id: Some(id),
            version: "0".to_owned(),
            leader: None,
            head: None,
            published: None,
            store: Some(store),
            copies_missing: 0,
            now: TimeMs(0),
        };
        let (last, shown, receipts) = Default::default();
        let lie = Mutex::new(lie);
        let shared = Arc::new(Shared { lie, status, last, shown, receipts });
        let config = tls::server_config(&principal).expect("a key makes a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind(&peer.listen)).expect("its port is free");
        runtime.spawn(listen(listener, acceptor, shared.clone()));
        Self { id, shared, _runtime: runtime }
    }

    pub fn now(&self, lie: Lie) {
        *self.shared.lie.lock().expect("no test panics here") = lie;
    }

    /// How often it showed other bytes than a chunk's.
    pub fn shown(&self) -> u64 {
        self.shared.shown.load(Ordering::SeqCst)
    }

    /// How many chunks it said it would keep.
    pub fn receipts(&self) -> u64 {
        self.shared.receipts.load(Ordering::SeqCst)
    }
}

async fn listen(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        tokio::spawn(async move {
            if let Ok(stream) = acceptor.accept(tcp).await {
                // Whoever asked may hang up whenever he likes.
                let _ = shared.serve(stream).await;
            }
        });
    }
}

impl Shared {
    async fn serve(&self, mut stream: TlsStream<TcpStream>) -> std::io::Result<()> {
        loop {
            let (head, body) = read(&mut stream).await?;
            let lie = *self.lie.lock().expect("no test panics here");
            let reply = match lie {
                Lie::Content | Lie::Receipts => self.reply(&head, &body, lie),
                Lie::Rubbish => b"\x00\x01 nothing that anybody speaks \xff\r\n\r\n".to_vec(),
                Lie::Silence => std::future::pending().await,
            };
            stream.write_all(&reply).await?;
            if lie == Lie::Rubbish {
                return stream.shutdown().await;
            }
        }
    }

    /// A whole reply: what it says is well formed.
    fn reply(&self, head: &str, body: &[u8], lie: Lie) -> Vec<u8> {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let path = path.strip_prefix("/api/v4/").unwrap_or_default();
        let body = match path {
            "status" => wire::encode(&Status { now: host::now(), ..self.status.clone() }),
            "chunks/put" => wire::encode(&self.take(body, lie)),
            "chunks/have" => {
                let asked: Vec<ChunkId> = wire::decode(body).expect("a mount's own message");
                wire::encode(&asked.into_iter().map(receipt).map(Some).collect::<Vec<_>>())
            }
            path if path.starts_with("chunks/") || path.len() == 64 => self.other_bytes(),
            _ => b"whatever it was that you asked".to_vec(),
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.into_bytes(), body].concat()
    }

    fn take(&self, body: &[u8], lie: Lie) -> Vec<Receipt> {
        let mut batch = Unbatch::default();
        batch.push(body).expect("a mount's own batch");
        let chunks = batch.finish().expect("a mount's own batch");
        self.receipts.fetch_add(chunks.len() as u64, Ordering::SeqCst);
        let last = chunks.last().map(|chunk| chunk.to_vec()).unwrap_or_default();
        *self.last.lock().expect("no test panics here") = last;
        let of = |bytes: &[u8]| match lie {
            Lie::Receipts => receipt(hash::address(&[bytes, b"?"].concat())),
            _ => receipt(hash::address(bytes)),
        };
        chunks.iter().map(|chunk| of(chunk)).collect()
    }

    /// A chunk but for its last bit.
    fn other_bytes(&self) -> Vec<u8> {
        self.shown.fetch_add(1, Ordering::SeqCst);
        let mut bytes = self.last.lock().expect("no test panics here").clone();
        match bytes.last_mut() {
            Some(byte) => *byte ^= 1,
            None => bytes.extend_from_slice(b"nothing came here yet"),
        }
        bytes
    }
}

fn receipt(chunk: ChunkId) -> Receipt {
    Receipt { chunk, stamp: host::now() }
}

/// One request: its head, and the body of the length that stands there.
async fn read(stream: &mut TlsStream<TcpStream>) -> std::io::Result<(String, Vec<u8>)> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).await?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    Ok((head, body))
}
