//! In what hosts address a volume.

use super::limits::BLOCK_BYTES;

/// Size of a volume's logical blocks: what hosts of NVMe/TCP address. It is chosen when the volume is made. The pool's blocks have 4096 bytes whatever it is, so a
/// host is told that smaller ones are worth joining.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockSize {
    /// 4096 bytes, the pool's own.
    #[default]
    Bytes4096,
    /// 512 bytes.
    Bytes512,
}

impl BlockSize {
    /// Every size.
    pub const ALL: [Self; 2] = [Self::Bytes4096, Self::Bytes512];

    /// Its power of two.
    #[must_use]
    pub const fn shift(self) -> u8 {
        match self {
            Self::Bytes4096 => 12,
            Self::Bytes512 => 9,
        }
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The size of so many bytes, if it is one.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.bytes() == bytes)
    }

    /// As formats have it: zero for the pool's own, else the power of two.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Bytes4096 => 0,
            Self::Bytes512 => self.shift(),
        }
    }

    /// The size that a format means, if it means one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.code() == code)
    }
}

const _: () = assert!(BlockSize::Bytes4096.bytes() == BLOCK_BYTES);
