//! The parsers of what people and programs type: pool URLs with their options, sizes, names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use volmux_core::memory::MemoryConfig;
use volmux_core::{ByteSize, Holder, PoolUrl, VolumeId, VolumeName};

fuzz_target!(|text: &str| {
    if let Ok(url) = text.parse::<PoolUrl>() {
        let shown = url.to_string();
        assert!(shown.starts_with(url.scheme()) && shown.ends_with(url.path()));
        let _ = MemoryConfig::from_url(&url);
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        let exact: ByteSize = size.bytes().to_string().parse().expect("bytes are a size");
        assert_eq!(exact, size);
    }
    if let Ok(name) = VolumeName::new(text) {
        assert_eq!(name.as_str(), text);
        assert!(!text.starts_with(['-', '.', '+']) && !text.contains('/'));
    }
    if let Ok(id) = text.parse::<VolumeId>() {
        assert_eq!(id.to_string().parse::<VolumeId>().expect("an id"), id);
    }
    let _ = Holder::new(text);
});
