//! SCSI as block storage needs it (SPC-4, SBC-3): commands, what they return, and what went wrong.
//!
//! [`LogicalUnit`] is what the layers above use. What comes from a target is untrusted: each parser
//! takes any bytes, and gives a bounded result or says what is wrong.

mod capacity;
pub mod cdb;
mod channel;
mod designator;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod inquiry;
mod lba_status;
mod limits;
mod luns;
mod mode;
mod opcodes;
mod pieces;
mod provisioning;
mod reservation;
mod retry;
mod sense;
mod unit;
mod unmap;
mod wire;
mod words;

pub use capacity::Capacity;
pub use designator::{Association, Designator, DesignatorKind, parse_designators};
pub use error::{Illegal, Result, ScsiError, ScsiErrorKind, session_error};
pub use inquiry::{Inquiry, parse_pages, parse_serial};
pub use lba_status::{BlockState, LbaStatus, parse_lba_status};
pub use limits::{BlockLimits, Rotation, parse_rotation};
pub use luns::Luns;
pub use mode::Mode;
pub use opcodes::Operation;
pub use provisioning::{LogicalBlockProvisioning, ProvisioningType};
pub use reservation::{
    FullStatus, RegisteredKeys, Registrant, Reservation, ReservationCapabilities, ReservationKind,
    parse_reservation,
};
pub use sense::Sense;
pub use unit::{LogicalUnit, UnitOptions, report_luns};
pub use wire::Malformed;
