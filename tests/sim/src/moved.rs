//! Counts what collections of garbage move, by what they log: so that a simulation in which nothing
//! is moved does not pass for one that tries it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Those who log it begin with this.
const TARGET: &str = "volmux_object::gc::";

/// What was moved, by kind.
pub type Counts = BTreeMap<&'static str, u64>;

/// Counts as long as it is the thread's subscriber.
#[derive(Clone, Debug, Default)]
pub struct Moved(Arc<Mutex<Counts>>);

impl Moved {
    /// What was counted.
    pub fn so_far(&self) -> Counts {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Visit for &Moved {
    fn record_u64(&mut self, field: &Field, value: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(field.name()).or_default() += value;
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Subscriber for Moved {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with(TARGET) && *metadata.level() == Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut &*self);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
