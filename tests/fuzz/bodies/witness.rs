//! What a witness and its nodes read from each other, by whoever knows the key: the seal is mended, so that what lies behind it is reached.

use super::take;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use twinlog::{
    base::{Epoch, Incarnation, PoolId, PortionId},
    format::register::Side,
    pair::{
        arbiter::SwapOutcome,
        auth::PairKey,
        ownership,
        witness::{
            ANSWER_BYTES, Answer, BeatRequest, HELLO_BYTES, Hello, NONCE_BYTES, PartnerBeat, REQUEST_BYTES, Request,
            Session, WELCOME_BYTES,
        },
    },
};

const KEY: [u8; 32] = [7; 32];
const SEAL_BYTES: usize = 32;

/// The key that valid inputs are made with.
pub(crate) fn key() -> PairKey {
    PairKey::new(KEY)
}

/// Gives a message the seal that it should have.
fn mend(bytes: &mut [u8], label: &[u8], before: &[u8]) {
    let (message, seal) = bytes.split_at_mut(bytes.len() - SEAL_BYTES);
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&KEY).expect("HMAC takes keys of any length");
    mac.update(label);
    mac.update(before);
    mac.update(message);
    seal.copy_from_slice(&mac.finalize().into_bytes());
}

/// The hello of the connection that is fuzzed.
pub(crate) fn hello() -> Hello {
    Hello { name: "a".to_owned(), partner: "b".to_owned(), incarnation: Incarnation(5), nonce: [1; NONCE_BYTES] }
}

/// One byte: which message, and whether its seal is mended; then the message.
pub(crate) fn witness(data: &[u8]) -> bool {
    let ([head], data) = take::<1>(data);
    let is_mended = head % 8 >= 4;
    let (mut witness, welcome) = Session::welcome(&key(), &hello(), [2; NONCE_BYTES], None);
    let nonces = [[1; NONCE_BYTES], [2; NONCE_BYTES]].concat();
    match head % 4 {
        0 => {
            let (mut bytes, _) = take::<HELLO_BYTES>(data);
            if is_mended {
                mend(&mut bytes, b"twinlog witness hello", &[]);
            }
            let Ok(hello) = Hello::verify(&bytes, &key()) else { return false };
            assert_eq!(Hello::verify(&hello.encode(&key()), &key()), Ok(hello));
            true
        }
        1 => {
            let (mut bytes, _) = take::<WELCOME_BYTES>(data);
            if is_mended {
                mend(&mut bytes, b"twinlog witness welcome", &hello().nonce);
            }
            Session::welcomed(&key(), &hello(), &bytes).is_ok()
        }
        2 => {
            let (mut bytes, _) = take::<REQUEST_BYTES>(data);
            if is_mended {
                mend(&mut bytes, b"twinlog witness request", &nonces);
            }
            let Ok(request) = witness.asked(&bytes) else { return false };
            assert_eq!(witness.ask(&request), bytes, "one form for each request");
            true
        }
        _ => {
            let (mut bytes, _) = take::<ANSWER_BYTES>(data);
            let mut node = Session::welcomed(&key(), &hello(), &welcome).expect("as it was made");
            if is_mended {
                mend(&mut bytes, b"twinlog witness answer", &nonces);
            }
            let Ok(answer) = node.answered(&bytes) else { return false };
            assert_eq!(witness.answer(&answer), bytes, "one form for each answer");
            true
        }
    }
}

/// Valid inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let (key, hello) = (key(), hello());
    let (witness, welcome) = Session::welcome(&key, &hello, [2; NONCE_BYTES], None);
    let (_, refusal) = Session::welcome(&key, &hello, [2; NONCE_BYTES], Some("another pair"));
    let register = ownership::create(PoolId(3), Epoch(9), PortionId(4), 5);
    let next = ownership::claim(&register, Side::Home, PortionId(4), 6);
    let beat = BeatRequest { count: 2, fences: Some(Incarnation(8)), time_ns: 9 };
    let requests = [
        Request::Read(PoolId(3)),
        Request::Swap(None, register),
        Request::Swap(Some(register), next),
        Request::Beat(beat),
    ];
    let requests = requests.map(|request| [&[6], &witness.ask(&request)[..]].concat());
    let theirs = PartnerBeat { incarnation: Incarnation(8), count: 4, fences: Some(Incarnation(5)) };
    let answers = [
        Answer::Register(Some(register)),
        Answer::Swapped(SwapOutcome::Done(next)),
        Answer::Swapped(SwapOutcome::Changed(None)),
        Answer::Swapped(SwapOutcome::Unknown("a disk".to_owned())),
        Answer::Beat(Some(theirs)),
        Answer::Failed("a disk".to_owned()),
    ];
    // Each is the first of its connection.
    let answers = answers.map(|answer| {
        let (mut fresh, _) = Session::welcome(&key, &hello, [2; NONCE_BYTES], None);
        [&[7], &fresh.answer(&answer)[..]].concat()
    });
    let hellos =
        [[&[4], &hello.encode(&key)[..]].concat(), [&[5], &welcome[..]].concat(), [&[5], &refusal[..]].concat()];
    hellos.into_iter().chain(requests).chain(answers).collect()
}
