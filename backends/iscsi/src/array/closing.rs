//! Who is being closed in this process: his session ends soon, so he is waited for.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use volmux_core::Holder;

/// Of all pools: another one may be of the same array.
static CLOSING: LazyLock<Mutex<HashSet<Holder>>> = LazyLock::new(Mutex::default);

fn list() -> MutexGuard<'static, HashSet<Holder>> {
    CLOSING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody is being closed, until this is dropped.
#[derive(Debug)]
pub struct Closing(Holder);

impl Closing {
    /// The closing of `holder` begins.
    pub fn begin(holder: &Holder) -> Closing {
        list().insert(holder.clone());
        Closing(holder.clone())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        list().remove(&self.0);
    }
}

/// Whether he is being closed.
pub fn is_closing(holder: &Holder) -> bool {
    list().contains(holder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_as_long_as_the_closing() {
        let holder = crate::array::opener_name("t", "iqn.2026-11.a:b").expect("a name");
        assert!(!is_closing(&holder));
        let closing = Closing::begin(&holder);
        assert!(is_closing(&holder));
        drop(closing);
        assert!(!is_closing(&holder));
    }
}
