//! `twinlog demo` as a user runs it: a node dies under load, nothing that was answered is lost, and the report says so.

use crate::common::{command, folder, outcome};
use serde_json::Value;
use std::fs;

#[test]
fn the_demo_kills_a_node_and_reports_that_nothing_was_lost() {
    let folder = folder();
    let dir = folder.path().join("demo");
    let place = dir.to_str().expect("plain").to_owned();
    let arguments = ["demo", &place, "--time", "40", "-o", "json"];
    let done = outcome(&mut command(env!("CARGO_BIN_EXE_twinlog"), &arguments));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    let values = serde_json::Deserializer::from_str(&said).into_iter::<Value>();
    let report = values.last().expect("a report").expect("JSON");
    assert_eq!((report["lost_sectors"].as_u64(), report["errors"].as_u64()), (Some(0), Some(0)), "{report}");
    assert!(report["acknowledged_writes"].as_u64() > Some(100), "{report}");
    assert!(report["longest_pause_seconds"].as_f64() > Some(0.0), "{report}");
    let page = fs::read_to_string(dir.join("report.html")).expect("a page");
    for moment in ["node a killed", "b serves", "a serves again"] {
        assert!(page.contains(moment), "{moment}");
    }
    // A directory that is not of a demo is left alone.
    let other = folder.path().join("other");
    fs::create_dir(&other).expect("made");
    let refused = outcome(&mut command(env!("CARGO_BIN_EXE_twinlog"), &["demo", other.to_str().expect("plain")]));
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
}
