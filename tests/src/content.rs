//! Data that tests write, and reading it back.

use bytes::Bytes;
use volmux::{BlockDevice, OpenOptions, Pool, VolumeName};

/// Whether all bytes are zero, quickly in a build without optimizations too.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    data.chunks(ZEROS.len())
        .all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// `length` bytes without a zero among them, which differ by `seed`.
pub fn pattern(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&(state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    data.truncate(length);
    Bytes::from(data)
}

/// Everything in an open volume.
pub(crate) async fn read_device(device: &dyn BlockDevice) -> Bytes {
    let length = usize::try_from(device.size()).expect("a small volume");
    device.read_at(0, length).await.expect("read")
}

/// Everything in a volume.
///
/// # Panics
/// If it can't be read.
pub async fn read_all(pool: &dyn Pool, name: &VolumeName) -> Bytes {
    let device = pool.open_volume(name, OpenOptions::read_only()).await;
    read_device(device.expect("open for reading").as_ref()).await
}

/// Fails with the first place where the two differ, instead of printing both.
#[track_caller]
pub(crate) fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if found == expected {
        return;
    }
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if let Some(at) = (0..found.len()).find(|&i| found[i] != expected[i]) {
        panic!(
            "{what}: byte {at} is {:#04x} and should be {:#04x}",
            found[at], expected[at]
        );
    }
}

/// Fails if a byte is not zero.
#[track_caller]
pub(crate) fn assert_zeros(found: &[u8], what: &str) {
    if is_zero(found) {
        return;
    }
    if let Some(at) = found.iter().position(|&b| b != 0) {
        panic!("{what}: byte {at} is {:#04x} and should be zero", found[at]);
    }
}
