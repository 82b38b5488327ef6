//! Case files: parsing, validation, and writing what was read back to the same case.
#![no_main]

mod checked;

use std::path::Path;

use glitch::case::Case;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = Path::new("case.json");
    match Case::parse(path, data) {
        Ok(case) => {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let written = case.write(dir.path()).expect("a valid case can be written");
            assert_eq!(Case::read(&written).expect("a written case can be read"), case);
            // Laying out its tokens must not depend on what the file says of itself.
            let _ = case.trial().layout();
        }
        Err(error) => checked::refusal(&error),
    }
});
