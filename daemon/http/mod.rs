//! `/api/v4` between machines (TLS 1.3, both keys pinned) and on one machine (a Unix socket).
//!
//! Owns: sockets, connections, and how a message becomes a request and a reply.
//! Never: decides what a caller may do (`peer`), and never speaks plain HTTP on TCP.

pub mod admission;
mod bodies;
mod budget;
pub mod client;
mod patience;
mod routes;
pub mod server;
pub mod tls;
pub mod transport;
pub mod unix;

#[cfg(test)]
mod tests;
