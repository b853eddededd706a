//! libFuzzer on the target `pool`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("pool", data);
});
