//! Which nodes of the tree the kernel holds, and under which numbers.
//!
//! Owns: the numbers of nodes, and the count of the kernel's references to each.
//! Invariant: a number means one node for as long as the kernel holds it; what the kernel has
//! forgotten is not kept, so the table is as large as the kernel's own.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

pub struct Held<N> {
    /// The root's number, and the bit that all numbers have.
    first: u64,
    root: N,
    nodes: HashMap<u64, (N, u64)>,
}

impl<N: Copy + Eq + Hash> Held<N> {
    pub fn new(first: u64, root: N) -> Self {
        Self { first, root, nodes: HashMap::new() }
    }

    /// The number that a node has unless another one that is held has it already: a hash, so that
    /// a node keeps its number when it is forgotten and found again.
    pub fn number(&self, node: N) -> u64 {
        if node == self.root {
            return self.first;
        }
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let number = self.first | hasher.finish();
        number.max(self.first + 1)
    }

    /// Counts a reference that the kernel is given, and says under which number.
    pub fn hold(&mut self, node: N) -> u64 {
        let mut number = self.number(node);
        if number == self.first {
            return number; // the root is never forgotten
        }
        loop {
            let (there, count) = self.nodes.entry(number).or_insert((node, 0));
            if *there == node {
                *count += 1;
                return number;
            }
            number = (number + 1) | self.first;
            number = number.max(self.first + 1);
        }
    }

    pub fn node(&self, number: u64) -> Option<N> {
        if number == self.first {
            return Some(self.root);
        }
        self.nodes.get(&number).map(|(node, _)| *node)
    }

    /// The kernel drops `count` references.
    pub fn forget(&mut self, number: u64, count: u64) {
        let Some((_, held)) = self.nodes.get_mut(&number) else { return };
        *held = held.saturating_sub(count);
        if *held == 0 {
            self.nodes.remove(&number);
        }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All values have the same hash, so that every number collides.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Same(u8);

    impl Hash for Same {
        fn hash<H: Hasher>(&self, state: &mut H) {
            state.write_u8(0);
        }
    }

    #[test]
    fn nodes_that_collide_have_numbers_of_their_own() {
        let mut held = Held::new(1 << 63, Same(0));
        let numbers: Vec<_> = (1..=3).map(|n| held.hold(Same(n))).collect();
        for (n, number) in numbers.iter().enumerate() {
            assert_eq!(held.node(*number), Some(Same(n as u8 + 1)));
            assert!(number >> 63 == 1 && *number != 1 << 63);
        }
        assert_eq!(held.hold(Same(0)), 1 << 63);
    }

    #[test]
    fn a_node_is_kept_until_every_reference_is_forgotten() {
        let mut held = Held::new(1 << 63, 0u8);
        let number = held.hold(7);
        assert_eq!(held.hold(7), number);
        held.forget(number, 1);
        assert_eq!(held.node(number), Some(7));
        held.forget(number, 1);
        assert_eq!((held.node(number), held.len()), (None, 0));
        assert_eq!(held.hold(7), number, "found again, it has its number again");
        held.forget(1 << 63, 9);
        assert_eq!(held.node(1 << 63), Some(0));
    }
}
