//! Why a controller does not serve.

use crate::spec::Status;
use thiserror::Error;

/// What a controller did that the specification forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A completion for a command that is not in flight: invented, or a second one.
    #[error("a completion for a command that is not in flight")]
    UnknownCommand,
    /// A completion in one queue for another.
    #[error("a completion for another queue")]
    ForeignQueue,
    /// A completion says that the controller has read commands that were not written.
    #[error("a position in the submission queue that was not reached")]
    QueueHead,
    /// A list of namespaces does not ascend.
    #[error("a list of namespaces that does not ascend")]
    NamespaceOrder,
}

/// Why a controller or namespace cannot be used, though it does nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unsupported {
    /// The register window holds no doorbells.
    #[error("its register window is too short")]
    Window,
    /// No NVM command set.
    #[error("it has no NVM command set")]
    CommandSet,
    /// The smallest page is larger than 4 KiB.
    #[error("its pages are larger than 4 KiB")]
    PageSize,
    /// Queues of fewer than two entries, or entries of other sizes.
    #[error("its queues cannot hold a command")]
    QueueSize,
    /// Metadata beside each logical block.
    #[error("formatted with metadata")]
    Metadata,
    /// Logical blocks smaller than 512 or larger than 4096 bytes, or no such format.
    #[error("formatted with logical blocks that are not of 512 to 4096 bytes")]
    Format,
    /// Not one block of 4 KiB, or more bytes than 64 bits count.
    #[error("its size is not possible")]
    Size,
}

/// Why a controller does not serve and will not again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// It is not there any more.
    #[error("the controller is gone")]
    Gone,
    /// It was shut down as asked.
    #[error("the controller was shut down")]
    ShutDown,
    /// It broke the protocol.
    #[error("the controller broke the protocol: {0}")]
    Violation(Violation),
    /// This driver cannot use it.
    #[error("the controller cannot be used: {0}")]
    Unsupported(Unsupported),
    /// A command without which nothing works was refused.
    #[error("the controller refused to {0}: {1}")]
    Refused(&'static str, Status),
    /// It had to be reset too often.
    #[error("the controller had to be reset too often")]
    Unstable,
    /// After a reset, or with another firmware, it was another one or can do less, or its namespaces were others.
    #[error("after a reset or a new firmware the controller was not the same")]
    Changed,
    /// Neither the controller nor its function could be reset: it may still be writing to memory.
    #[error("the controller cannot be stopped")]
    Unstoppable,
    /// There is no memory for its queues.
    #[error("no memory for the controller's queues")]
    NoMemory,
}
