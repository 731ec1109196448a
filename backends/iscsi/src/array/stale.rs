//! Who has a volume open, and died.
//!
//! An opening is an attachment to an initiator name that only this opening has. Whoever has it open
//! is logged in. One who is not may be on his way in or out, or may have lost his connection: he is
//! given time. After that he is taken for dead. Should he live, he is not let in again.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use volmux_core::{AttachOptions, ErrorKind, Result, Volume, VolumeName};

use super::closing::is_closing;
use super::names::{is_opener, target};
use super::pool::Inner;

/// How long somebody may be on his way in or out.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long somebody who is being closed in this process is waited for.
const CLOSING: Duration = Duration::from_secs(60);
/// How long somebody who is logged in is given to go.
const LEAVING: Duration = Duration::from_secs(2);

/// What came of looking for those who are dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// One who had the volume open has not any more.
    Somebody,
    /// Nobody had it open to begin with.
    NobodyThere,
    /// Those who have it open are alive.
    Nobody,
}

impl Inner {
    /// Waits for those who have the volume open, and lets go those who are dead.
    pub async fn release_stale(&self, op: &'static str, name: &VolumeName) -> Result<Released> {
        // Counted from the first look, which may have to wait for the store.
        let mut begun = None;
        let mut at_first: Option<Vec<AttachOptions>> = None;
        loop {
            let volume = match self.look(op, name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Ok(Released::Somebody);
                }
                volume => volume?,
            };
            let openers = self.openers(&volume);
            let first = at_first.get_or_insert_with(|| openers.clone());
            if first.is_empty() {
                return Ok(Released::NobodyThere);
            }
            if first.iter().any(|opener| !openers.contains(opener)) {
                return Ok(Released::Somebody);
            }
            let dead = self.not_logged_in(op, &volume).await?;
            let begun = *begun.get_or_insert_with(Instant::now);
            let closing = openers.iter().any(|opener| is_closing(&opener.holder));
            if closing && begun.elapsed() < CLOSING {
                // He goes by himself.
            } else if dead.is_empty() {
                if begun.elapsed() > LEAVING {
                    return Ok(Released::Nobody);
                }
            } else if begun.elapsed() > GRACE {
                return Ok(match self.bury(op, name, &dead).await? {
                    true => Released::Somebody,
                    false => Released::Nobody,
                });
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Those who have the volume open and are not logged in.
    pub async fn not_logged_in(
        &self,
        op: &'static str,
        volume: &Volume,
    ) -> Result<Vec<AttachOptions>> {
        let mut dead = Vec::new();
        for opener in self.openers(volume) {
            let target = target(&self.prefix, volume.id, opener.access);
            if self.sessions(op, &target, &opener.holder).await?.is_empty() {
                dead.push(opener);
            }
        }
        Ok(dead)
    }

    /// Lets go those of `dead` who are still not logged in. Whether any of `dead` are gone now.
    pub async fn bury(
        &self,
        op: &'static str,
        name: &VolumeName,
        dead: &[AttachOptions],
    ) -> Result<bool> {
        let (volume, _lock) = self.locked(op, name).await?;
        let still = self.not_logged_in(op, &volume).await?;
        // Who was on his way out may be gone now: the lock was waited for.
        let left = self.openers(&volume);
        let mut any = dead.iter().any(|opener| !left.contains(opener));
        for opener in still.iter().filter(|opener| dead.contains(opener)) {
            tracing::warn!(
                volume = %name,
                holder = %opener.holder,
                "the volume was open there, and nobody is logged in any more: it is let go"
            );
            self.withdraw(op, name, &opener.holder).await?;
            any = true;
        }
        Ok(any)
    }

    /// Those who have the volume open, by way of this array.
    fn openers(&self, volume: &Volume) -> Vec<AttachOptions> {
        let attachments = volume.attachments.iter();
        attachments
            .filter(|attached| is_opener(&attached.holder, &self.prefix))
            .cloned()
            .collect()
    }
}
