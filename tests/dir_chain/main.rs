//! Directory pools on ext4, where snapshots and clones are chains of qcow2 images.

mod damage;
mod history;
mod merging;
mod scene;
mod together;
