//! What compression costs and brings; run with `--release -- --ignored --nocapture frame::measure`.

use std::time::Instant;

use super::*;

const MIB: usize = 1 << 20;

/// What is in a guest's memory and disks, as far as it is at hand: code, text, and what is neither.
fn corpora() -> Vec<(&'static str, Vec<u8>)> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let text = (0..).flat_map(|n: u64| {
        let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        format!(
            "2024-05-{:02} host{} request {hash} took {} ms\n",
            n % 28,
            n % 7,
            hash % 977
        )
        .into_bytes()
    });
    let mut state = 1u64;
    let noise = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    vec![
        ("program", program.into_iter().take(16 * MIB).collect()),
        ("log", text.take(16 * MIB).collect()),
        ("zeros", vec![0; 16 * MIB]),
        ("noise", noise.take(16 * MIB).collect()),
    ]
}

#[test]
#[ignore = "measures time"]
fn ratio_and_time() {
    for (name, data) in corpora() {
        for codec in [Codec::Lz4, Codec::Zstd] {
            let mut encoder = Encoder::new(codec).unwrap();
            let start = Instant::now();
            let frames: Vec<Vec<u8>> = data
                .chunks(FRAME_BYTES)
                .map(|frame| encoder.encode(frame).to_vec())
                .collect();
            let encoding = start.elapsed();
            let stored: usize = frames.iter().map(Vec::len).sum();
            let (mut decoder, mut content) = (Decoder::default(), vec![0; FRAME_BYTES]);
            let start = Instant::now();
            for (frame, expected) in frames.iter().zip(data.chunks(FRAME_BYTES)) {
                let content = &mut content[..expected.len()];
                decoder.decode(codec, frame, content).unwrap();
            }
            let decoding = start.elapsed();
            let each = |time: std::time::Duration| {
                time.as_secs_f64() * 1e3 / (data.len() as f64 / MIB as f64)
            };
            println!(
                "{codec:?} {name}: {:.3} of the bytes, {:.2} ms/MiB to make, {:.2} ms/MiB to read",
                stored as f64 / data.len() as f64,
                each(encoding),
                each(decoding)
            );
        }
    }
}
