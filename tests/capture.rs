//! What passes over this machine's loopback, as whoever listens on a wire sees it.
//!
//! Owns: a packet socket and the bytes of each TCP stream that it saw.
//! Never: sends, or keeps packets of ports that were not asked for.
//! Invariant: the bytes of one direction of one connection stand in the order in which they were
//! sent, so that a word which two packets share is found.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Room for what arrives while this process does something else.
const KERNEL_BYTES: libc::c_int = 64 << 20;
/// A packet of the loopback and its headers.
const PACKET_BYTES: usize = 128 << 10;
/// How long a read waits before it looks whether to end.
const LOOK_MICROSECONDS: libc::suseconds_t = 50_000;

/// (from address, from port, to address, to port)
type Way = ([u8; 4], u16, [u8; 4], u16);

#[derive(Default)]
struct Stream {
    next: Option<u32>,
    bytes: Vec<u8>,
}

pub struct Capture {
    end: Arc<AtomicBool>,
    reader: JoinHandle<HashMap<Way, Stream>>,
}

/// A socket option that is a plain structure.
fn set<T>(socket: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    let (value, size) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: `value` points at `size` readable bytes that outlive the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, value, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn socket() -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_IP as u16).to_be();
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes plain numbers.
    let number = unsafe { libc::socket(libc::AF_PACKET, kind, protocol.into()) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    set(&socket, libc::SO_RCVBUFFORCE, &KERNEL_BYTES)?;
    let wait = libc::timeval { tv_sec: 0, tv_usec: LOOK_MICROSECONDS };
    set(&socket, libc::SO_RCVTIMEO, &wait)?;
    // SAFETY: the name ends in NUL; the structure is plain numbers and may be all zeros.
    let (index, mut address) =
        unsafe { (libc::if_nametoindex(c"lo".as_ptr()), std::mem::zeroed::<libc::sockaddr_ll>()) };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index as i32;
    let (at, size) = (std::ptr::from_ref(&address).cast(), size_of_val(&address) as u32);
    // SAFETY: `at` points at `size` readable bytes that outlive the call.
    match unsafe { libc::bind(socket.as_raw_fd(), at, size) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The next packet that arrives somewhere, without those that are seen leaving as well.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: plain numbers, which may be all zeros.
    let mut from = unsafe { std::mem::zeroed::<libc::sockaddr_ll>() };
    let mut size = size_of_val(&from) as libc::socklen_t;
    let (into, room) = (buffer.as_mut_ptr().cast(), buffer.len());
    let address = std::ptr::from_mut(&mut from).cast();
    // SAFETY: `into` has `room` writable bytes, `address` has `size`.
    let length =
        unsafe { libc::recvfrom(socket.as_raw_fd(), into, room, 0, address, &raw mut size) };
    match length {
        ..0 => Err(io::Error::last_os_error()),
        _ if from.sll_pkttype == libc::PACKET_OUTGOING => Ok(0),
        _ => Ok(length as usize),
    }
}

/// Whose bytes an IPv4 packet carries, the number of the first of them, and they.
fn tcp(packet: &[u8]) -> Option<(Way, u32, &[u8])> {
    let (version, header) = (packet.first()? >> 4, usize::from(packet[0] & 15) * 4);
    let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    if version != 4 || packet.get(9).copied()? != libc::IPPROTO_TCP as u8 {
        return None;
    }
    // A packet that the kernel joined from several says 0.
    let whole = if total == 0 { packet } else { packet.get(..total)? };
    let address = |at: usize| whole.get(at..at + 4)?.try_into().ok();
    let segment = whole.get(header..)?;
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let number = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
    let data = segment.get(usize::from(segment.get(12)? >> 4) * 4..)?;
    Some(((address(12)?, port(0)?, address(16)?, port(2)?), number, data))
}

impl Stream {
    /// What was sent twice is kept once.
    fn take(&mut self, number: u32, data: &[u8]) {
        let next = self.next.unwrap_or(number);
        let known = next.wrapping_sub(number);
        let new = if known < 1 << 31 { data.get(known as usize..) } else { Some(data) };
        if let Some(new) = new {
            self.bytes.extend_from_slice(new);
            self.next = Some(number.wrapping_add(data.len() as u32));
        }
    }
}

impl Capture {
    /// Keeps what goes from and to these ports, from now on. Only root may listen so.
    pub fn of(ports: &[u16]) -> io::Result<Self> {
        let (socket, ports) = (socket()?, ports.to_vec());
        let end = Arc::new(AtomicBool::new(false));
        let ends = end.clone();
        let read = move || {
            let (mut streams, mut buffer) = (HashMap::new(), vec![0; PACKET_BYTES]);
            // What waits in the kernel when the end comes still belongs to it.
            loop {
                match receive(&socket, &mut buffer) {
                    Ok(length) => {
                        let Some((way, number, data)) = tcp(&buffer[..length]) else { continue };
                        if !data.is_empty() && (ports.contains(&way.1) || ports.contains(&way.3)) {
                            let stream: &mut Stream = streams.entry(way).or_default();
                            stream.take(number, data);
                        }
                    }
                    Err(_) if ends.load(Ordering::Relaxed) => return streams,
                    Err(_) => {}
                }
            }
        };
        Ok(Self { end, reader: std::thread::spawn(read) })
    }

    /// Both directions of every connection, each as one run of bytes.
    pub fn stop(self) -> Vec<Vec<u8>> {
        self.end.store(true, Ordering::Relaxed);
        let streams = self.reader.join().expect("the reader does not panic");
        streams.into_values().map(|stream| stream.bytes).collect()
    }
}
