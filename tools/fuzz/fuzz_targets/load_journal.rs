//! libFuzzer on the target `load-journal`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("load-journal", data);
});
