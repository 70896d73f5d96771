//! Memory in which a frame stands as it will stand on disk: behind what its first block has already, and in whole blocks.
//!
//! Invariants: it begins where a block may begin that goes to the disk without a copy; what is settled is less than a
//! block.

/// Disks and file systems take blocks of this size, at multiples of it.
pub(super) const BLOCK_BYTES: usize = 4096;

/// More memory than that is given back: it stems from a store that did not keep up.
const KEPT_BYTES: usize = 1 << 20;

/// The end of a file, and what is to stand behind it.
#[derive(Debug, Default)]
pub(super) struct FileEnd {
    memory: Vec<u8>,
    /// Where in it the first block begins.
    start: usize,
    /// Bytes of the first block that stand in the file already.
    settled: usize,
    /// Bytes that are to stand behind them.
    fresh: usize,
}

impl FileEnd {
    /// The file begins anew, and has less than a block.
    pub(super) fn restart(&mut self, content: &[u8]) {
        assert!(content.len() < BLOCK_BYTES, "a file begins with little");
        self.settled = 0;
        self.fill(content.len(), |memory| memory.extend_from_slice(content));
        self.settle();
    }

    /// Has something written, instead of what was and is not settled. It may write as many bytes as it has said.
    pub(super) fn fill(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.memory.truncate(self.start + self.settled);
        let needed = bytes + BLOCK_BYTES;
        if self.memory.capacity() - self.memory.len() < needed
            || (self.memory.capacity() > KEPT_BYTES && needed < KEPT_BYTES / 2)
        {
            let mut memory: Vec<u8> = Vec::with_capacity(self.settled + needed + BLOCK_BYTES);
            let start = memory.as_ptr().align_offset(BLOCK_BYTES);
            memory.resize(start, 0);
            memory.extend_from_slice(&self.memory[self.start..]);
            (self.memory, self.start) = (memory, start);
        }
        let before = self.memory.len();
        write(&mut self.memory);
        self.fresh = self.memory.len() - before;
        assert!(self.fresh <= bytes, "or it would have moved");
        self.memory.resize(self.start + (self.settled + self.fresh).next_multiple_of(BLOCK_BYTES), 0);
    }

    /// What was written, without what stands before it.
    pub(super) fn fresh(&self) -> &[u8] {
        &self.all()[self.settled..]
    }

    /// The same behind what the first block has already.
    pub(super) fn all(&self) -> &[u8] {
        &self.memory[self.start..][..self.settled + self.fresh]
    }

    /// The same with zeros up to the end of the last block.
    pub(super) fn whole(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    /// Bytes before what was written, in its block.
    pub(super) const fn settled(&self) -> usize {
        self.settled
    }

    /// What was written stands in the file.
    pub(super) fn settle(&mut self) {
        let end = self.settled + self.fresh;
        let last_block = end - end % BLOCK_BYTES;
        self.memory.copy_within(self.start + last_block..self.start + end, self.start);
        (self.settled, self.fresh) = (end - last_block, 0);
        self.memory.truncate(self.start + self.settled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_stands_before_what_follows_and_all_is_aligned() {
        let mut end = FileEnd::default();
        end.restart(b"head");
        let mut file = b"head".to_vec();
        for (number, length) in [10, 4_000, 5_000, 0, 82, 8_192, 2 << 20, 30, 4_096].into_iter().enumerate() {
            let frame = vec![number as u8 + 1; length];
            for is_given_up in [true, false] {
                let content = if is_given_up { b"never" } else { &frame[..] };
                end.fill(content.len(), |memory| memory.extend_from_slice(content));
                let before = file.len() - file.len() % BLOCK_BYTES;
                assert_eq!(end.settled(), file.len() - before);
                assert_eq!(end.fresh(), content);
                assert_eq!(end.all(), [&file[before..], content].concat());
                assert!(end.whole().starts_with(end.all()));
                assert!(end.whole()[end.all().len()..].iter().all(|byte| *byte == 0));
                assert_eq!(end.whole().len() % BLOCK_BYTES, 0);
                assert_eq!(end.whole().as_ptr().align_offset(BLOCK_BYTES), 0);
            }
            end.settle();
            file.extend_from_slice(&frame);
            assert!(end.memory.capacity() <= 2 * KEPT_BYTES || length > KEPT_BYTES);
        }
    }
}
