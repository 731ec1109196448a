//! What a fuzzer may throw bytes at: the headers of qcow2 images, which whoever writes to the pool's
//! directory can make. Not part of the library: there is no such module unless it is built for
//! fuzzing.

use crate::chain;

/// Gives bytes to the check of headers, as the first of a file.
///
/// # Panics
/// If the check is at fault: what it lets in is not as this pool makes it, or does not stay so with
/// another file below it.
pub fn header(bytes: &[u8]) {
    chain::header::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/seeds/qcow2");

    #[test]
    fn every_seed_is_a_header_that_is_let_in() {
        let mut let_in = 0;
        for entry in Path::new(SEEDS).read_dir().expect("the seeds") {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).expect("a seed");
            header(&bytes);
            let checked = chain::header::check(&bytes, 1 << 40);
            assert!(checked.is_ok(), "{}: {checked:?}", path.display());
            let_in += 1;
        }
        assert!(let_in >= 2, "{let_in}");
    }
}
