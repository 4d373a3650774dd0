//! Standard input and output, and what else is no file, as blocks that are passed on.
//!
//! Owns: the thread that waits for whoever is at the other end of the pipe.
//! Never: waits in the runtime: a pipe that nobody serves would keep an interrupted verb from ending.
//! Invariant: at most three blocks are in memory for each direction.

use super::BLOCK_BYTES;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// Blocks between the pipe and the volume.
const BLOCKS_WAITING: usize = 1;

/// What a person types where a pipe is meant.
pub fn is_pipe(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The same for what is written to, by the names that programs know it by.
pub fn is_output(path: &Path) -> bool {
    is_pipe(path) || ["/dev/stdout", "/dev/fd/1"].map(Path::new).contains(&path)
}

/// Standard input, for the message of an error.
pub fn input_name() -> PathBuf {
    PathBuf::from("standard input")
}

/// Standard input to its end, which is the channel's.
pub fn input() -> mpsc::Receiver<io::Result<Bytes>> {
    let (blocks, received) = mpsc::channel(BLOCKS_WAITING);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut block = Vec::with_capacity(BLOCK_BYTES);
            // A pipe gives as little as was written to it at once.
            let read = input.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block);
            let last = !matches!(read, Ok(1..));
            let block = read.map(|_| Bytes::from(block));
            let wanted = block.as_ref().map_or(true, |block| !block.is_empty());
            // Nobody receives any more once the verb is interrupted.
            if wanted && blocks.blocking_send(block).is_err() || last {
                return;
            }
        }
    });
    received
}

/// Whether it is there and takes bytes without being a file: a device, a named pipe, a link to one,
/// or one of the kernel's links to open files.
pub fn takes_bytes(path: &Path) -> bool {
    let of_the_kernel =
        path.is_symlink() && (path.starts_with("/dev") || path.starts_with("/proc"));
    path.metadata().is_ok_and(|there| !there.is_dir() && (of_the_kernel || !there.is_file()))
}

/// Standard output, or what has a name and is no file.
pub struct Output {
    blocks: mpsc::Sender<Bytes>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// `None`: standard output. What has a name is opened by whoever waits, since a named pipe
    /// without a reader keeps its opener.
    pub fn open(name: Option<PathBuf>) -> Self {
        let (blocks, mut received) = mpsc::channel::<Bytes>(BLOCKS_WAITING);
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let pass_on = || {
                let mut output: Box<dyn Write> = match name {
                    None => Box::new(io::stdout().lock()),
                    Some(name) => Box::new(File::options().write(true).open(name)?),
                };
                while let Some(block) = received.blocking_recv() {
                    output.write_all(&block)?;
                }
                output.flush()
            };
            // Nobody hears it once the verb is interrupted.
            let _ = end.send(pass_on());
        });
        Self { blocks, ended }
    }

    /// False when it takes nothing any more: `end` says why.
    pub async fn write(&self, block: Bytes) -> bool {
        self.blocks.send(block).await.is_ok()
    }

    /// Everything was taken by the reader's pipe, or why not.
    pub async fn end(self) -> io::Result<()> {
        drop(self.blocks);
        self.ended.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }
}
