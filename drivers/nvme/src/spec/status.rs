//! Status of a completion (base 3.3.3.2.1).

use std::fmt;

/// The status field without its phase: code in bits 0 to 7, type in 8 to 10, retry delay in 11 and 12, more in 13, do-not-retry in 14.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// Opcode unknown.
    pub const INVALID_OPCODE: Self = Self(0x01);
    /// A field has a value that the controller does not know.
    pub const INVALID_FIELD: Self = Self(0x02);
    /// The identifier is in use.
    pub const ID_CONFLICT: Self = Self(0x03);
    /// An error inside the controller.
    pub const INTERNAL: Self = Self(0x06);
    /// Aborted as asked.
    pub const ABORTED: Self = Self(0x07);
    /// Aborted because its queue was deleted.
    pub const QUEUE_DELETED: Self = Self(0x08);
    /// No such namespace.
    pub const INVALID_NAMESPACE: Self = Self(0x0B);
    /// Aborted because its host was preempted.
    pub const PREEMPTED: Self = Self(0x1B);
    /// The namespace cannot be written.
    pub const WRITE_PROTECTED: Self = Self(0x20);
    /// The controller was interrupted: ask again.
    pub const INTERRUPTED: Self = Self(0x21);
    /// Beyond the namespace.
    pub const OUT_OF_RANGE: Self = Self(0x80);
    /// No space left in the namespace.
    pub const NO_SPACE: Self = Self(0x81);
    /// The namespace is not ready: ask again.
    pub const NOT_READY: Self = Self(0x82);
    /// Another host has reserved the namespace.
    pub const RESERVED: Self = Self(0x83);
    /// The queue's number is in use or too large.
    pub const INVALID_QUEUE: Self = Self(0x101);
    /// The queue's size is not possible.
    pub const INVALID_QUEUE_SIZE: Self = Self(0x102);
    /// There is no such interrupt vector.
    pub const INVALID_VECTOR: Self = Self(0x108);
    /// More than one dataset command may have.
    pub const TOO_LARGE: Self = Self(0x183);
    /// The medium could not be written.
    pub const WRITE_FAULT: Self = Self(0x280);
    /// The medium could not be read.
    pub const UNRECOVERED_READ: Self = Self(0x281);

    /// Type and code, without the bits about retries.
    #[must_use]
    pub fn code(self) -> u16 {
        self.0 & 0x7FF
    }

    /// Whether the command succeeded.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Whether the status is one about the medium (type 2).
    #[must_use]
    pub fn is_medium(self) -> bool {
        self.code() >> 8 == 2
    }

    /// Whether the same command may succeed later: its status says so and the controller does not forbid it (DNR).
    #[must_use]
    pub fn is_transient(self) -> bool {
        self.0 >> 14 & 1 == 0 && matches!(Self(self.code()), Self::INTERRUPTED | Self::NOT_READY)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "status type {:x}h code {:02x}h", self.code() >> 8, self.code() & 0xFF)
    }
}
