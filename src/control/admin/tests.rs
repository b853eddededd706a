//! The server against a thread that plays the reactor.

use super::*;
use crate::{
    control::client::{AdminClient, ClientError},
    node::admin::NodeStatus,
    reactor::mailbox::{Mailbox, Waker, mailbox},
};
use crossbeam_channel::Sender;

/// Wakes the playing thread.
struct Nudge(Sender<()>);

impl Waker for Nudge {
    fn wake(&self) {
        let _awake_already = self.0.try_send(());
    }
}

/// A node that answers every call with `answer` until all handles are gone.
fn node(answer: impl Fn(&AdminRequest) -> Option<AdminReply> + Send + 'static) -> NodeHandle {
    let (nudge, nudged) = bounded(1);
    let (sender, calls): (_, Mailbox<AdminCall>) = mailbox(CALLS_MAX, Arc::new(Nudge(nudge)));
    let play = move || {
        while nudged.recv().is_ok() {
            while let Some(call) = calls.receive() {
                if let Some(reply) = answer(&call.request) {
                    let _client_gone = call.reply.send(reply);
                }
            }
        }
    };
    Builder::new().name("fake reactor".to_owned()).spawn(play).expect("a thread");
    NodeHandle::new(sender)
}

fn obliging() -> NodeHandle {
    node(|request| {
        Some(match request {
            AdminRequest::Status => {
                AdminReply::Status(Box::new(NodeStatus { state: "serving".to_owned(), ..NodeStatus::default() }))
            }
            _ => AdminReply::Done,
        })
    })
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn exchange(stream: &mut UnixStream, line: &[u8]) -> String {
    stream.write_all(line).expect("sent");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("an answer");
    answer
}

#[test]
fn requests_are_answered_one_line_each_on_a_private_socket() {
    let directory = directory();
    let path = directory.path().join("admin.sock");
    fs::write(&path, "left by a dead process").expect("written");
    let server = AdminServer::start(&path, obliging()).expect("started");
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);

    let mut client = AdminClient::connect(&path).expect("connected");
    assert!(matches!(client.call(&AdminRequest::Status), Ok(AdminReply::Status(status)) if status.state == "serving"));
    assert_eq!(client.call(&AdminRequest::Checkpoint).expect("answered"), AdminReply::Done);

    let mut raw = UnixStream::connect(&path).expect("connected");
    assert_eq!(exchange(&mut raw, b"{\"call\":\"checkpoint\"}\n"), "{\"schema_version\":1,\"reply\":\"done\"}\n");
    assert!(exchange(&mut raw, b"{\"call\":\"explode\"}\n").contains("unknown variant"));
    assert!(exchange(&mut raw, b"\xff\n").contains("not a request"));
    assert!(exchange(&mut raw, b"{\"call\":\"checkpoint\"}\n").contains("done"), "the connection goes on");

    drop(server);
    assert!(matches!(AdminClient::connect(&path), Err(ClientError::NotRunning { .. })));
}

#[test]
fn a_line_without_end_is_refused_at_its_bound() {
    let directory = directory();
    let path = directory.path().join("admin.sock");
    let _server = AdminServer::start(&path, obliging()).expect("started");
    let line = |length: usize| {
        let mut bytes = b"{\"call\":\"checkpoint\"}".to_vec();
        bytes.resize(length - 1, b' ');
        bytes.push(b'\n');
        exchange(&mut UnixStream::connect(&path).expect("connected"), &bytes)
    };
    assert!(line(REQUEST_LINE_BYTES_MAX).contains("done"));
    assert!(line(REQUEST_LINE_BYTES_MAX + 1).contains("too long"));
}

#[test]
fn one_connection_too_many_is_told_so_and_a_closed_one_makes_room() {
    let directory = directory();
    let path = directory.path().join("admin.sock");
    let _server = AdminServer::start(&path, obliging()).expect("started");
    let mut held: Vec<AdminClient> =
        (0..CONNECTIONS_MAX).map(|_| AdminClient::connect(&path).expect("connected")).collect();
    for client in &mut held {
        client.call(&AdminRequest::Checkpoint).expect("every one of them is served");
    }
    let mut late = AdminClient::connect(&path).expect("connected");
    let reply = late.call(&AdminRequest::Checkpoint);
    assert!(matches!(&reply, Ok(AdminReply::Refused { message, .. }) if message.contains("too many")), "{reply:?}");
    held.pop();
    let served = |_| {
        matches!(AdminClient::connect(&path).expect("connected").call(&AdminRequest::Checkpoint), Ok(AdminReply::Done))
    };
    assert!((0..1000).any(served), "the closed connection's thread ends soon");
}

#[test]
fn a_node_that_drops_the_call_is_a_refusal_and_so_is_one_that_is_slow_or_gone() {
    let dropped = node(|_| None).ask(AdminRequest::Checkpoint, None);
    assert!(matches!(dropped, AdminReply::Refused { message, .. } if message.contains("stopped before")));

    let (sender, calls) = mailbox::<AdminCall>(1, Arc::new(Nudge(bounded(1).0)));
    let idle = NodeHandle::new(sender);
    let slow = idle.ask(AdminRequest::Status, Some(Duration::from_millis(1)));
    assert!(matches!(slow, AdminReply::Refused { message, .. } if message.contains("in time")));
    let full = idle.ask(AdminRequest::Status, None);
    assert!(matches!(full, AdminReply::Refused { message, .. } if message.contains("too many")));
    drop(calls);
    let gone = idle.ask(AdminRequest::Status, None);
    assert!(matches!(gone, AdminReply::Refused { message, .. } if message.contains("has stopped")));
}

#[test]
fn long_work_reports_its_progress_while_it_lasts() {
    let directory = directory();
    let path = directory.path().join("admin.sock");
    let (finish, finished) = bounded::<()>(1);
    let pending = std::cell::RefCell::new(None);
    // The first check is kept waiting until progress was asked for twice.
    let (nudge, nudged) = bounded(1);
    let (sender, calls): (_, Mailbox<AdminCall>) = mailbox(CALLS_MAX, Arc::new(Nudge(nudge)));
    let play = move || {
        while nudged.recv().is_ok() {
            while let Some(call) = calls.receive() {
                if call.request == AdminRequest::PoolCheck {
                    pending.replace(Some(call.reply));
                    continue;
                }
                let progress = AdminReply::Progress { work: "check".to_owned(), done_blocks: 1, total_blocks: 2 };
                let _client_gone = call.reply.send(progress);
                if finished.try_recv().is_ok() {
                    let waiting: Sender<AdminReply> = pending.take().expect("a check waits");
                    waiting.send(AdminReply::Done).expect("the client waits");
                }
            }
        }
    };
    Builder::new().spawn(play).expect("a thread");
    let _server = AdminServer::start(&path, NodeHandle::new(sender)).expect("started");
    let mut seen = 0;
    let reply =
        AdminClient::connect(&path).expect("connected").call_with_progress(&AdminRequest::PoolCheck, |done, total| {
            assert_eq!((done, total), (1, 2));
            seen += 1;
            if seen == 2 {
                finish.send(()).expect("the node lives");
            }
        });
    assert_eq!(reply.expect("answered"), AdminReply::Done);
    assert!(seen >= 2);
}
