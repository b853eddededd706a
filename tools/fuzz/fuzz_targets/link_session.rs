//! libFuzzer on the target `link-session`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("link-session", data);
});
