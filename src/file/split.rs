//! Where a stream of new content is cut into chunks: by content, so that shifted copies of the
//! same data give the same chunks again.
//!
//! Owns: the gear table (256 words from the volume's cut key) and the rule of a cut.
//! Never: cuts by anything but the bytes since the last cut, so the same bytes are cut alike.
//! Invariant: every chunk but a stream's last has between `MIN` and `MAX` bytes.
//!
//! A rolling sum `h = 2h + gear[byte]` depends on the last 64 bytes. A cut is behind the first
//! byte from `MIN` on whose sum has zeros under a mask in its upper bits: 22 of them below
//! `AVERAGE`, 18 from there on, which draws the lengths together around the average.

use bytes::Bytes;

pub struct Cutter {
    gear: Box<[u64; 256]>,
}

/// The rolling sum forgets a byte after so many shifts.
const WINDOW: usize = 64;

/// `bits` ones at the top: bit 63 depends on 64 bytes, the lowest of these on more than 40.
const fn mask(bits: u32) -> u64 {
    !(u64::MAX >> bits)
}

impl Cutter {
    pub const MIN: usize = 256 << 10;
    pub const AVERAGE: usize = 1 << 20;
    pub const MAX: usize = 4 << 20;

    /// Harder to meet before the average, easier behind it: 2^20 shifted by two bits.
    const EARLY: u64 = mask(22);
    const LATE: u64 = mask(18);

    pub fn new(cut_key: &[u8; 32]) -> Self {
        let mut bytes = [0; 256 * 8];
        blake3::Hasher::new_keyed(cut_key).finalize_xof().fill(&mut bytes);
        let mut gear = Box::new([0; 256]);
        for (word, bytes) in gear.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self { gear }
    }

    /// The length of the first chunk of `stream`; `None` when more bytes are needed to tell.
    /// At the end of a stream the rest is a chunk, of whatever length.
    pub fn next_cut(&self, stream: &[u8], end_of_stream: bool) -> Option<usize> {
        let cut = self.content_cut(&stream[..stream.len().min(Self::MAX)]);
        match cut {
            Some(len) => Some(len),
            None if stream.len() >= Self::MAX => Some(Self::MAX),
            None if end_of_stream && !stream.is_empty() => Some(stream.len()),
            None => None,
        }
    }

    /// All of `bytes` in chunks, the end of the stream included; without copying.
    pub fn pieces(&self, mut bytes: Bytes) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        while let Some(len) = self.next_cut(&bytes, true) {
            pieces.push(bytes.split_to(len));
        }
        pieces
    }

    fn content_cut(&self, bytes: &[u8]) -> Option<usize> {
        if bytes.len() < Self::MIN {
            return None;
        }
        let mut h = 0u64;
        // The window before the first allowed cut is rolled in, so that whether there is a cut
        // depends on these 64 bytes alone and not on where the chunk began.
        for byte in &bytes[Self::MIN - WINDOW..Self::MIN - 1] {
            h = (h << 1).wrapping_add(self.gear[usize::from(*byte)]);
        }
        let early = Self::AVERAGE.min(bytes.len());
        self.roll(&mut h, bytes, Self::MIN - 1..early, Self::EARLY)
            .or_else(|| self.roll(&mut h, bytes, early..bytes.len(), Self::LATE))
    }

    fn roll(
        &self,
        h: &mut u64,
        bytes: &[u8],
        range: std::ops::Range<usize>,
        mask: u64,
    ) -> Option<usize> {
        let start = range.start;
        for (i, byte) in bytes[range].iter().enumerate() {
            *h = (*h << 1).wrapping_add(self.gear[usize::from(*byte)]);
            if *h & mask == 0 {
                return Some(start + i + 1);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u8, len: usize) -> Bytes {
        let mut bytes = vec![0; len];
        blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
        bytes.into()
    }

    #[test]
    fn chunks_stay_within_their_bounds_and_near_the_average() {
        let cutter = Cutter::new(&[1; 32]);
        let bytes = noise(2, 48 << 20);
        let pieces = cutter.pieces(bytes.clone());
        assert_eq!(pieces.concat(), bytes);
        let (last, others) = pieces.split_last().expect("not empty");
        assert!(last.len() <= Cutter::MAX);
        assert!(others.iter().all(|p| (Cutter::MIN..=Cutter::MAX).contains(&p.len())));
        let average = bytes.len() / pieces.len();
        assert!((700 << 10..1500 << 10).contains(&average), "{average}");
    }

    #[test]
    fn shifted_data_is_cut_alike_again() {
        let cutter = Cutter::new(&[1; 32]);
        let bytes = noise(3, 16 << 20);
        let shifted = Bytes::from([&b"a few bytes in front"[..], &bytes].concat());
        let (one, two) = (cutter.pieces(bytes), cutter.pieces(shifted));
        let same = two.iter().filter(|piece| one.contains(piece)).count();
        assert!(same + 4 >= one.len(), "{same} of {}", one.len());
    }

    #[test]
    fn another_key_cuts_elsewhere() {
        let bytes = noise(4, 16 << 20);
        let lens = |key| -> Vec<usize> {
            Cutter::new(&[key; 32]).pieces(bytes.clone()).iter().map(Bytes::len).collect()
        };
        assert_ne!(lens(1), lens(2));
    }

    #[test]
    fn a_cut_waits_for_the_bytes_it_needs_and_never_changes_after() {
        let cutter = Cutter::new(&[1; 32]);
        let bytes = noise(5, Cutter::MAX);
        let cut = cutter.next_cut(&bytes, false).expect("enough bytes to tell");
        assert_eq!(cutter.next_cut(&bytes[..cut], false), Some(cut));
        assert_eq!(cutter.next_cut(&bytes[..cut - 1], false), None);
        assert_eq!(cutter.next_cut(&bytes[..cut - 1], true), Some(cut - 1));
        assert_eq!(cutter.next_cut(&[], true), None);
        let zeros = vec![0; Cutter::MAX + 1];
        assert_eq!(cutter.next_cut(&zeros, false), Some(Cutter::MAX));
    }
}
