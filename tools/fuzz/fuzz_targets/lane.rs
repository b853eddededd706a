//! libFuzzer on the target `lane`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("lane", data);
});
