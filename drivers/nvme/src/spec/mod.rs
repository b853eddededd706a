//! The bytes of NVM Express: base specification 2.0c, NVM command set 1.0c, PCIe transport 1.0c. Section numbers are theirs ("base",
//! "nvm", "pcie"); what is used here is the same in base 1.4.
//!
//! Everything a controller sent is data of these types and nothing more: who uses a field checks it.

mod command;
mod identify;
mod log;
mod registers;
mod reservation;
mod status;

pub use command::{
    CompletionEntry, DeallocateRange, FUSED_NONE, FeatureId, Opcode, SglDescriptor, SubmissionEntry, USES_SGL,
    admin_opcode, feature, identify_kind, io_opcode, log_page, sgl_type,
};
pub use identify::{IdentifyController, IdentifyNamespace, LbaFormat, NamespaceList, attribute, once};
pub use log::{AsynchronousEvent, ErrorEntry, HealthLog};
pub use registers::{Capabilities, Configuration, ControllerStatus, doorbell, offset};
pub use reservation::{RegisteredHost, ReservationHeader};
pub use status::Status;

/// Bytes of a page of memory as this driver sets the controller up (CC.MPS = 0, base 3.1.3.5).
pub const PAGE_BYTES: usize = 4096;
