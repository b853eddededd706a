//! libFuzzer on the target `link-frame`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("link-frame", data);
});
