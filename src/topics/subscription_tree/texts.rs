//! The texts of all filters, packed.
//!
//! A text of its own on the heap costs a pointer, a length, and what the allocator rounds up to: more than most filters
//! are long. Here texts stand one after the other in chunks, each behind the number of its owner. A removed text leaves
//! a hole; a full chunk that is more hole than text is emptied into the present one and freed. So at least about half
//! of the memory holds text, and removing a text moves at most half a chunk.
//!
//! Invariants: a text is at the place its owner was told last; the present chunk is the only one that grows.

/// Bytes of a chunk.
const CHUNK_BYTES: usize = 16 * 1_024;

/// A longer text has a chunk of its own, so that it leaves no large remainder of the present one unused.
const PACKED_MAX: usize = CHUNK_BYTES / 4;

/// The number of the owner and the length of the text stand before it, in four bytes each.
const HEADER_BYTES: usize = 8;

/// The owner of a hole.
const NOBODY: u32 = u32::MAX;

/// Where a text stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) chunk: u32,
    pub(super) offset: u16,
}

#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// Bytes that are not holes.
    live: usize,
}

#[derive(Debug, Default)]
pub(super) struct Texts {
    chunks: Vec<Chunk>,
    /// Chunks without memory.
    free: Vec<u32>,
    /// The chunk that grows.
    present: Option<u32>,
    /// Chunks to be emptied.
    sparse: Vec<u32>,
}

impl Texts {
    /// The text at a place.
    #[inline]
    pub(super) fn text(&self, place: Place) -> &[u8] {
        let (_, text) = read(&self.chunks[place.chunk as usize].bytes[usize::from(place.offset)..]);
        text
    }

    /// Adds a text. `placed` is told where it stands, and where others stand that had to move.
    pub(super) fn insert(&mut self, owner: u32, text: &[u8], mut placed: impl FnMut(u32, Place)) {
        placed(owner, self.append(owner, text));
        self.empty_sparse(placed);
    }

    /// Removes a text. `placed` is told where others stand that had to move.
    pub(super) fn remove(&mut self, place: Place, placed: impl FnMut(u32, Place)) {
        let index = place.chunk;
        let chunk = &mut self.chunks[index as usize];
        let entry = &mut chunk.bytes[usize::from(place.offset)..];
        let size = HEADER_BYTES + read(entry).1.len();
        entry[..4].copy_from_slice(&NOBODY.to_le_bytes());
        chunk.live -= size;
        if self.present == Some(index) {
            if chunk.live == 0 {
                chunk.bytes.clear();
            }
        } else {
            self.judge(index);
            self.empty_sparse(placed);
        }
    }

    fn append(&mut self, owner: u32, text: &[u8]) -> Place {
        let size = HEADER_BYTES + text.len();
        let index = if size > PACKED_MAX {
            self.add_chunk(size)
        } else {
            match self.present {
                Some(index) if self.chunks[index as usize].bytes.len() + size <= CHUNK_BYTES => index,
                full => {
                    let index = self.add_chunk(CHUNK_BYTES);
                    self.present = Some(index);
                    if let Some(full) = full {
                        self.judge(full);
                    }
                    index
                }
            }
        };
        let chunk = &mut self.chunks[index as usize];
        let offset = u16::try_from(chunk.bytes.len()).expect("a chunk is smaller than 2^16 bytes");
        let length = u32::try_from(text.len()).expect("a text is shorter than 2^32 bytes");
        chunk.bytes.extend_from_slice(&owner.to_le_bytes());
        chunk.bytes.extend_from_slice(&length.to_le_bytes());
        chunk.bytes.extend_from_slice(text);
        chunk.live += size;
        Place { chunk: index, offset }
    }

    fn add_chunk(&mut self, capacity: usize) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.chunks.push(Chunk::default());
            u32::try_from(self.chunks.len() - 1).expect("fewer chunks than 2^32")
        });
        self.chunks[index as usize].bytes = Vec::with_capacity(capacity);
        index
    }

    /// Marks a chunk that does not grow any more for emptying, if it is more hole than text.
    fn judge(&mut self, index: u32) {
        let chunk = &self.chunks[index as usize];
        if chunk.live * 2 < chunk.bytes.len() {
            self.sparse.push(index);
        }
    }

    fn empty_sparse(&mut self, mut placed: impl FnMut(u32, Place)) {
        while let Some(index) = self.sparse.pop() {
            let Chunk { bytes, .. } = std::mem::take(&mut self.chunks[index as usize]);
            self.free.push(index);
            for (owner, text) in entries(&bytes) {
                placed(owner, self.append(owner, text));
            }
        }
    }

    /// Asserts that every text stands where its owner thinks, and that there are no others.
    pub(super) fn check_invariants(&self, owners: usize, place_of: impl Fn(u32) -> Place) {
        let mut count = 0;
        for (index, chunk) in (0..).zip(&self.chunks) {
            assert_eq!(chunk.bytes.capacity() == 0, self.free.contains(&index));
            let mut live = 0;
            for (owner, text) in entries(&chunk.bytes) {
                let place = place_of(owner);
                assert_eq!(place.chunk, index);
                assert!(std::ptr::eq(self.text(place), text));
                live += HEADER_BYTES + text.len();
                count += 1;
            }
            assert_eq!(live, chunk.live);
            assert!(self.present == Some(index) || live * 2 >= chunk.bytes.len());
        }
        assert_eq!(count, owners);
        assert!(self.sparse.is_empty());
    }
}

/// The owner and the text at the beginning of these bytes.
#[inline]
fn read(bytes: &[u8]) -> (u32, &[u8]) {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (number(0), &bytes[HEADER_BYTES..][..number(4) as usize])
}

/// The owners and texts of a chunk, without holes.
fn entries(bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        (!rest.is_empty()).then(|| {
            let (owner, text) = read(rest);
            rest = &rest[HEADER_BYTES + text.len()..];
            (owner, text)
        })
    })
    .filter(|(owner, _)| *owner != NOBODY)
}
