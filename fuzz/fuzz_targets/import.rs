//! The lines of an import, whatever bytes they are: each is an event, or is refused with a reason, and none is lost.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use projection_runtime::{ProjectionSet, fuzzing};
use tokio::io::BufReader;
use tokio::runtime::{Builder, Runtime};

static PROJECTIONS: LazyLock<ProjectionSet> = LazyLock::new(dancefinder_projections::projections);
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().unwrap());

/// As `LONGEST_LINE` is here.
const LONGEST: usize = 1 << 10;

fuzz_target!(|input: &[u8]| -> Corpus {
    // How much of the file comes at a time.
    let Some((chunk, file)) = input.split_first() else { return Corpus::Reject };
    let mut lines = file.split_inclusive(|byte| *byte == b'\n');
    let (mut told, mut empty) = (0, 0);
    let source = BufReader::with_capacity(usize::from(*chunk) + 1, file);
    let read = RUNTIME.block_on(fuzzing::import(&PROJECTIONS, source, |event| {
        // The next line that isn't empty.
        let line = loop {
            let line = lines.next().expect("a line for each event");
            let text = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| told + empty == 0).unwrap_or(line);
            let long = line.len() > LONGEST && line.get(LONGEST) != Some(&b'\n');
            if long || std::str::from_utf8(text).map_or(true, |text| !text.trim().is_empty()) {
                break text;
            }
            empty += 1;
        };
        told += 1;
        match event {
            Ok(data) => {
                let text = std::str::from_utf8(line).expect("UTF-8");
                assert!(text.contains(&data), "the payload is as it was in the line");
                assert!(text.len() <= LONGEST + 1);
                assert!(serde_json::from_str::<serde::de::IgnoredAny>(&data).is_ok());
            }
            Err(reason) => assert!(!reason.is_empty()),
        }
    }));
    let (lines, bytes) = read.unwrap();
    assert_eq!(lines, file.split_inclusive(|byte| *byte == b'\n').count() as u64);
    assert_eq!(bytes, file.len() as u64);
    Corpus::Keep
});
