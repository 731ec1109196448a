//! The contract of volmux as a test suite that any pool can run.
//!
//! A backend says what it must support ([`Expect`]), how its pools come to be ([`Storage`]), and
//! calls [`conformance!`]: every case of the contract becomes one `#[test]`.
//!
//! ```
//! use volmux_conformance::{Expect, MemoryStorage, Storage, conformance};
//!
//! fn memory() -> Box<dyn Storage> {
//!     Box::new(MemoryStorage)
//! }
//!
//! conformance!(memory_pool, memory, Expect::MEMORY);
//! # fn main() {}
//! ```
//!
//! Nothing is ever skipped: where [`Expect`] says that a pool can't do something, the case asserts
//! that the call returns `Unsupported` and changes nothing. A case's name begins with the clause
//! that it stands for: `c01` to `c12` are the clauses of the contract (see [`CLAUSES`]), the others
//! are promises of the traits. `tests/broken.rs` proves that every case can fail.

mod cases;
pub mod chains;
mod content;
pub mod crash;
mod ctx;
mod expect;
mod fixture;
pub mod host;
pub mod iscsi;
pub mod killed;
pub mod lvm;
pub mod nfs;
mod object;
pub mod power;
mod run;
pub mod scratch;
pub mod servers;
mod table;

pub use content::{pattern, read_all};
pub use ctx::{Ctx, State, checked_name};
pub use expect::Expect;
pub use fixture::{DirStorage, Fixture, MemoryStorage, PoolSettings, Storage};
pub use iscsi::{LioStorage, TgtStorage};
pub use lvm::LvmStorage;
pub use nfs::NfsStorage;
pub use object::ObjectStorage;
pub use run::{on, run_case};
pub use table::{CASES, CLAUSES, Case};

/// Makes a module with one `#[test]` for each case of the suite.
///
/// `conformance!(module, make_storage, expect)`: `make_storage` is a `fn() -> Box<dyn Storage>` and
/// is called on the test's thread before any other thread of the test exists; `expect` is an
/// [`Expect`]. What stands before `module` is said of each test, such as `#[ignore = "needs …"]`.
#[macro_export]
macro_rules! conformance {
    ($(#[$attribute:meta])* $module:ident, $make_storage:expr, $expect:expr) => {
        #[cfg(test)]
        mod $module {
            use super::*;
            $crate::__volmux_cases!(
                [$crate::__volmux_tests] [$(#[$attribute])*] $make_storage, $expect
            );
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __volmux_tests {
    (
        [$attributes:tt $make_storage:expr, $expect:expr]
        $($module:ident: $($case:ident [$($need:ident)*])*;)*
    ) => {
        $($( $crate::__volmux_test!($attributes $case, $make_storage, $expect); )*)*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __volmux_test {
    ([$(#[$attribute:meta])*] $case:ident, $make_storage:expr, $expect:expr) => {
        $(#[$attribute])*
        #[test]
        fn $case() {
            $crate::run_case(stringify!($case), &$make_storage, $expect);
        }
    };
}
