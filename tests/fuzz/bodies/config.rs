//! The configuration file, and sizes as people write them.

use std::path::Path;
use twinlog::control::{
    config,
    size::{ByteSize, show_bytes, show_ns},
};

/// Text of a configuration: what is accepted is written and read back as the same; what is refused says where.
pub(crate) fn config(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let device = config::with_device(&text, Path::new("/dev/another"));
    match config::parse(&text, Path::new("node.toml"), Path::new("/data/a")) {
        Ok(read) => {
            let again = config::parse(&config::to_text(&read), Path::new("node.toml"), Path::new("/elsewhere"));
            assert_eq!(again.as_ref(), Ok(&read), "what was read is written and read back");
            let grown = device.expect("a good configuration takes a device");
            let grown = config::parse(&grown, Path::new("node.toml"), Path::new("/data/a"));
            if let Ok(grown) = grown {
                assert_eq!(grown.pool.devices.len(), read.pool.devices.len() + 1);
            }
            true
        }
        Err(error) => {
            assert!(!error.message.is_empty());
            assert!(error.line.is_none_or(|line| line >= 1 && line <= text.lines().count() + 1), "{error}");
            assert!(error.to_string().starts_with("node.toml"));
            false
        }
    }
}

/// A size: what is accepted is printed as something that is the same size again.
pub(crate) fn size(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let parsed = text.parse::<ByteSize>();
    match &parsed {
        Ok(size) => {
            assert_eq!(size.to_string().parse(), Ok(*size));
            assert!(!show_bytes(size.bytes()).is_empty() && !show_ns(size.bytes()).is_empty());
            let json = serde_json::to_string(size).expect("a size is a string");
            assert_eq!(serde_json::from_str::<ByteSize>(&json).expect("read back"), *size);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // As a bare JSON number or string, the way configuration and API give it.
    let _refused = serde_json::from_slice::<ByteSize>(data);
    parsed.is_ok()
}
