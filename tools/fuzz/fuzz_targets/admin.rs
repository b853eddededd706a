//! libFuzzer on the target `admin`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("admin", data);
});
