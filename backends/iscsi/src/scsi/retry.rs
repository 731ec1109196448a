//! What is done about an answer: take it, ask again, or give up.

use std::time::Duration;

use tokio::time::Instant;
use volmux_iscsi_initiator::{Data, Reply, Residual};

use super::error::{ScsiErrorKind, classify};
use super::sense::{Sense, key};

/// SCSI statuses (SAM-5 5.3.1).
pub(crate) mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const BUSY: u8 = 0x08;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    pub const TASK_SET_FULL: u8 = 0x28;
    pub const ACA_ACTIVE: u8 = 0x30;
    pub const TASK_ABORTED: u8 = 0x40;
}

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often what was aborted is asked for again.
const FEW: u32 = 3;
/// How many unit attentions may come before an answer: each of several initiators, and a start of
/// the target, may have left some.
const MOST_ATTENTIONS: u32 = 32;

/// What may be done with a command besides sending it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Having it done twice is as good as once.
    pub repeat: bool,
    /// Nothing relies yet on how the unit was, so nothing that changed matters.
    pub any_attention: bool,
    /// It is a read or write of blocks: all of it is transferred, or it failed.
    pub exact: bool,
}

/// What an answer means.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is done.
    Done,
    /// It was not done. Ask again, if there is time.
    Again {
        /// After a pause, longer each time.
        pause: bool,
        /// How often, if not until the deadline.
        few: bool,
        /// What it is if that does not help.
        otherwise: ScsiErrorKind,
    },
    /// Not this way.
    Failed(ScsiErrorKind),
}

fn again(pause: bool, few: bool, otherwise: ScsiErrorKind) -> Verdict {
    Verdict::Again {
        pause,
        few,
        otherwise,
    }
}

/// What `reply` to a command with `data` means. `sense` is what its sense data say.
pub(crate) fn judge(
    reply: &Reply,
    sense: Option<&Sense>,
    data: &Data,
    allowed: Allowed,
) -> Verdict {
    match reply.status {
        status::GOOD => whole(reply, data, allowed),
        status::CHECK_CONDITION => match sense {
            Some(sense) => by_sense(reply, sense, data, allowed),
            None => {
                let reason = "CHECK CONDITION without sense data";
                Verdict::Failed(ScsiErrorKind::Malformed(reason.into()))
            }
        },
        status::BUSY | status::TASK_SET_FULL => again(true, false, ScsiErrorKind::Busy),
        status::RESERVATION_CONFLICT => Verdict::Failed(ScsiErrorKind::ReservationConflict),
        status::ACA_ACTIVE => again(true, true, ScsiErrorKind::Busy),
        status::TASK_ABORTED if allowed.repeat => again(true, true, ScsiErrorKind::Aborted),
        status::TASK_ABORTED => Verdict::Failed(ScsiErrorKind::Aborted),
        other => {
            let reason = format!("the status is {other:#04x}");
            Verdict::Failed(ScsiErrorKind::Malformed(reason))
        }
    }
}

fn by_sense(reply: &Reply, sense: &Sense, data: &Data, allowed: Allowed) -> Verdict {
    match (sense.key, sense.code()) {
        // Of an earlier command all is well in the end; this one was not done (SPC-4 4.5.5).
        (key::RECOVERED_ERROR, _) if sense.deferred => again(false, true, classify(sense)),
        _ if sense.deferred => Verdict::Failed(classify(sense)),
        (key::RECOVERED_ERROR, _) => whole(reply, data, allowed),
        // Becoming ready, or changing the way to it.
        (key::NOT_READY, 0x0401 | 0x040a) => again(true, false, ScsiErrorKind::NotReady),
        (key::ABORTED_COMMAND, _) if allowed.repeat => again(true, true, ScsiErrorKind::Aborted),
        (key::UNIT_ATTENTION, code) => {
            let kind = classify(sense);
            let looked_at = matches!(code, 0x2a03..=0x2a05 | 0x3f03 | 0x3f0e);
            match looked_at && !allowed.any_attention {
                true => Verdict::Failed(kind),
                false => again(false, false, kind),
            }
        }
        _ => Verdict::Failed(classify(sense)),
    }
}

/// Whether all was transferred that was to be.
fn whole(reply: &Reply, data: &Data, allowed: Allowed) -> Verdict {
    if !allowed.exact {
        return Verdict::Done;
    }
    let wrong = |reason: String| Verdict::Failed(ScsiErrorKind::Malformed(reason));
    match reply.residual {
        Residual::Underflow(bytes) => return wrong(format!("{bytes} bytes were left out")),
        Residual::Overflow(bytes) => return wrong(format!("{bytes} bytes too many")),
        Residual::None => {}
    }
    let wanted = match data {
        Data::Read(bytes) => *bytes as usize,
        Data::Write(_) | Data::None => 0,
    };
    match reply.data.len() == wanted {
        true => Verdict::Done,
        false => wrong(format!("{} bytes came, not {wanted}", reply.data.len())),
    }
}

/// How long one command may still be asked for.
#[derive(Debug)]
pub(crate) struct Patience {
    until: Instant,
    pause: Duration,
    few: u32,
    attentions: u32,
}

impl Patience {
    pub fn new(deadline: Duration) -> Patience {
        Patience {
            until: Instant::now() + deadline,
            pause: FIRST_PAUSE,
            few: FEW,
            attentions: MOST_ATTENTIONS,
        }
    }

    /// The time that is left.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// How long to wait before the next attempt; `None` if there may be none.
    pub fn next(&mut self, pause: bool, few: bool) -> Option<Duration> {
        let count = match (few, pause) {
            (true, _) => Some(&mut self.few),
            (false, false) => Some(&mut self.attentions),
            (false, true) => None,
        };
        if let Some(count) = count {
            *count = count.checked_sub(1)?;
        }
        let wait = match pause {
            true => jittered(self.pause),
            false => Duration::ZERO,
        };
        if pause {
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
        (wait < self.left()).then_some(wait)
    }
}

/// Between half of it and all of it, so that those who were turned away together don't come back
/// together.
fn jittered(pause: Duration) -> Duration {
    // Without chance it is still a pause.
    let chance = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + pause.mul_f64(f64::from(chance) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_and_stay_within_bounds() {
        let second = Duration::from_secs(1);
        let pauses: Vec<Duration> = (0..50).map(|_| jittered(second)).collect();
        assert!(
            pauses
                .iter()
                .all(|pause| (second / 2..=second).contains(pause))
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
