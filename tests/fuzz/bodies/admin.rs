//! The admin API: lines of JSON in both directions.

use twinlog::{control::admin::ReplyLine, node::admin::AdminRequest};

/// Lines that could be requests or replies.
pub(crate) fn admin(data: &[u8]) -> bool {
    let mut understood = false;
    for line in data.split(|&byte| byte == b'\n') {
        if let Ok(request) = serde_json::from_slice::<AdminRequest>(line) {
            let text = serde_json::to_vec(&request).expect("a request is plain data");
            assert!(!text.contains(&b'\n'), "one request is one line");
            assert_eq!(serde_json::from_slice::<AdminRequest>(&text).expect("read back"), request);
            understood = true;
        }
        if let Ok(reply) = serde_json::from_slice::<ReplyLine>(line) {
            let text = serde_json::to_vec(&reply).expect("a reply is plain data");
            assert!(!text.contains(&b'\n'), "one reply is one line");
            understood = true;
        }
    }
    understood
}
