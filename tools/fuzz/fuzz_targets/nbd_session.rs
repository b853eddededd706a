//! libFuzzer on the target `nbd-session`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("nbd-session", data);
});
