//! libFuzzer on the target `nbd-handshake`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("nbd-handshake", data);
});
