//! libFuzzer on the target `superblock`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("superblock", data);
});
