//! libFuzzer on the target `witness`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("witness", data);
});
