//! Commands whose time has passed.

use super::*;

#[test]
fn a_forced_takeover_that_cannot_be_carried_out_is_void_in_the_end() {
    let mut pair = Pair::started(41);
    pair.create(0, "vol-a");
    let (reply, replies) = crossbeam_channel::bounded(1);
    let request = AdminRequest::PairTakeover { pool: Some("a".to_owned()), force: true };
    assert!(pair.node(1).controller.call(AdminCall { request, reply }).is_none(), "it is about the pair");
    // The partner stands still, with the interconnect up: it neither hands the pool over nor is it lost.
    let since = pair.node(1).platform.now();
    let status = |pair: &mut Pair| {
        let node = pair.node(1);
        node.controller.status(&node.way).pools[1].command.clone()
    };
    pair.node(1).turn();
    assert_eq!(status(&mut pair), "forced takeover, void in 3 s");
    // 120 retry intervals and twice the detection time are 2.6 s, for the partner too.
    while pair.node(1).platform.now().since(since) < Duration::from_secs(3) {
        pair.node(0).platform.turn(Wait::UpTo(Duration::from_micros(200)));
        pair.node(1).turn();
    }
    let answer = replies.try_recv().expect("answered");
    let AdminReply::Refused { message, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(message, "the forced takeover of pool a could not be carried out in time");
    assert_eq!(pair.node(1).controller.sides[1].command, Command::None);
    assert_eq!(status(&mut pair), "");
}
