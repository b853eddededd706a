//! libFuzzer on the target `load-replies`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("load-replies", data);
});
