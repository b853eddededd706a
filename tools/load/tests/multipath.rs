//! A host with two paths, and targets whose paths fail in every way that has a name.

mod support;

use serde_json::Value;
use support::{
    load,
    nvme::{Target, Trouble},
};

const LOAD: &str = "--rw randrw --mix 30 --bs 4k-32k --qd 8 --connections 2 --warmup 0 --ops 400 --verify -o json";

/// Runs a load that must meet no error; its report. Without `kato=` a path is lost when it is silent for a minute: not because the machine is busy.
fn survives(target: &Target, options: &str) -> Value {
    let patience = if options.contains("kato=") { "" } else { "&kato=60" };
    let report = load(&target.uri(&format!("nsid=1{patience}{options}")), LOAD).ends(0).json();
    assert_eq!((report["end"].as_str(), report["errors"].as_array().map(Vec::len)), (Some("finished"), Some(0)));
    report
}

fn pauses(report: &Value) -> usize {
    report["pauses"].as_array().expect("a list").len()
}

#[test]
fn every_kind_of_request_goes_over_the_optimized_path() {
    let target = Target::start(&[(2, Trouble::None), (1, Trouble::None)]);
    let report = load(&target.uri(""), &format!("{LOAD} --zero 10 --trim 10 --flush-every 20 --fua=10")).ends(0).json();
    assert!(pauses(&report) == 0 && report["classes"].as_array().expect("a list").len() == 5, "{report}");
    let [first, second] = target.changes()[..] else { panic!("two ports") };
    assert!(first == 0 && second > 100, "{first} {second}");
    survives(&target, "&capsule=no");
}

#[test]
fn what_a_lost_path_owes_goes_over_the_other_one() {
    for trouble in [Trouble::Close(50), Trouble::Silence(50), Trouble::WrongId(50)] {
        let target = Target::start(&[(1, trouble), (2, Trouble::None)]);
        let report = survives(&target, "&kato=1");
        assert!(pauses(&report) >= 1, "{trouble:?}: {report}");
        let pause = &report["pauses"][0];
        assert!(pause["detection_seconds"].as_f64() <= pause["seconds"].as_f64(), "{report}");
        assert!(pause["sent_again"].as_u64() > Some(0), "{report}");
        assert!(target.changes()[1] > 0, "{trouble:?}");
    }
}

#[test]
fn what_a_path_refuses_goes_over_the_other_one() {
    // Internal path error, inaccessible, host path error: none is the command's fault.
    for status in [0x300, 0x302, 0x370] {
        let target = Target::start(&[(1, Trouble::Refuse(50, 1000, status)), (2, Trouble::None)]);
        let report = survives(&target, "");
        assert!(pauses(&report) == 0 && target.changes()[1] > 0, "{status:#x}: {report}");
    }
}

#[test]
fn a_change_of_access_is_followed() {
    // Optimized and inaccessible change places.
    let target = Target::start(&[(1, Trouble::Exchange(50)), (3, Trouble::None)]);
    let report = survives(&target, "");
    assert_eq!(pauses(&report), 0, "{report}");
    let [first, second] = target.changes()[..] else { panic!("two ports") };
    assert!(first < 100 && second > 100, "{first} {second}");
}

#[test]
fn what_fails_for_a_while_is_asked_again_and_what_fails_for_good_is_not() {
    let target = Target::start(&[(1, Trouble::Refuse(10, 5, 0x22))]);
    survives(&target, "");
    for (status, errno) in [(0x22, 5), (0x4081, 28), (0x4281, 5)] {
        let target = Target::start(&[(1, Trouble::Refuse(10, 1000, status))]);
        let report = load(&target.uri("nsid=1"), LOAD).ends(1).json();
        assert_eq!(report["errors"][0]["errno"], errno, "{status:#x}: {report}");
    }
}

#[test]
fn without_a_path_the_target_is_lost_unless_it_comes_back() {
    let target = Target::start(&[(1, Trouble::Close(50)), (2, Trouble::Close(50))]);
    load(&target.uri("nsid=1"), LOAD).ends(3).says("lost");
    load(&target.uri("nsid=1"), &format!("{LOAD} --reconnect 1")).ends(3);
}
