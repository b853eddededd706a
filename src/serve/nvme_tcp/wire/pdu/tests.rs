//! Bounds of units, each from both sides.

use super::*;

const DIGESTS: Agreement = Agreement { header_digest: true, data_digest: true, alignment: 0 };
const PLAIN: Agreement = Agreement { header_digest: false, data_digest: false, alignment: 0 };

/// A unit of the host: kind, header, data, with digests as agreed on.
fn unit(kind: u8, agreement: Agreement, header: &[u8], data: &[u8]) -> Vec<u8> {
    let header_bytes = COMMON_BYTES + header.len();
    let digest_bytes = if agreement.header_digest { 4 } else { 0 };
    let mut flags = u8::from(agreement.header_digest);
    let mut data_offset = 0;
    let mut unit_bytes = header_bytes + digest_bytes;
    if !data.is_empty() {
        data_offset = unit_bytes;
        unit_bytes += data.len();
        if agreement.data_digest {
            flags |= flag::DATA_DIGEST;
            unit_bytes += 4;
        }
    }
    let mut bytes = common(kind, flags, header_bytes, (data_offset, length_of(unit_bytes))).as_bytes().to_vec();
    bytes.extend_from_slice(header);
    if agreement.header_digest {
        let sum = digest(0, &bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
    }
    bytes.extend_from_slice(data);
    if !data.is_empty() && agreement.data_digest {
        bytes.extend_from_slice(&digest(0, data).to_le_bytes());
    }
    bytes
}

fn transfer(command: u16, tag: u16, offset: u32, length: u32) -> Vec<u8> {
    let mut header = command.to_le_bytes().to_vec();
    header.extend_from_slice(&tag.to_le_bytes());
    header.extend_from_slice(&offset.to_le_bytes());
    header.extend_from_slice(&length.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header
}

/// What `bytes` are with some of them changed.
fn with(bytes: &[u8], agreement: Option<Agreement>, changes: &[(usize, u8)]) -> Result<Option<Unit>, Fatal> {
    let mut bytes = bytes.to_vec();
    for &(at, byte) in changes {
        bytes[at] = byte;
    }
    parse(&bytes, agreement)
}

#[test]
fn crc32c_is_the_one_of_the_specification() {
    // RFC 3720, appendix B.4.
    assert_eq!(digest(0, &[0; 32]), 0x8a91_36aa);
    assert_eq!(digest(0, &[0xff; 32]), 0x62a8_ab43);
    assert_eq!(digest(digest(0, b"1234"), b"56789"), 0xe306_9283);
}

#[test]
fn the_first_unit_opens_the_connection() {
    let mut header = vec![0; 120];
    (header[2], header[3]) = (31, 3);
    let bytes = unit(0, PLAIN, &header, &[]);
    let agreement = Agreement { header_digest: true, data_digest: true, alignment: 31 };
    let opened = Unit { body: Body::IcRequest(agreement), head_bytes: 128, data_bytes: 0, has_data_digest: false };
    assert_eq!(parse(&bytes, None), Ok(Some(opened)));
    for short in [0, 7, 8, 127] {
        assert_eq!(parse(&bytes[..short], None), Ok(None));
    }
    assert_eq!(with(&bytes, None, &[(8, 1)]), Err(Fatal::Unsupported(8)));
    assert_eq!(with(&bytes, None, &[(10, 32)]), Err(Fatal::InvalidHeader(10)));
    assert_eq!(with(&bytes, None, &[(2, 127)]), Err(Fatal::InvalidHeader(2)));
    assert_eq!(with(&bytes, None, &[(4, 127)]), Err(Fatal::InvalidHeader(4)));
    assert_eq!(with(&bytes, None, &[(4, 129)]), Err(Fatal::InvalidHeader(4)));
    assert_eq!(with(&bytes, None, &[(1, 1)]), Err(Fatal::InvalidHeader(1)));
    assert_eq!(with(&bytes, None, &[(0, 4)]), Err(Fatal::Sequence));
    assert_eq!(with(&bytes, None, &[(0, 1)]), Err(Fatal::InvalidHeader(0)));
    assert_eq!(parse(&bytes, Some(PLAIN)), Err(Fatal::Sequence), "once");
}

#[test]
fn commands_come_with_data_and_without() {
    for agreement in [PLAIN, DIGESTS] {
        let extra = if agreement.header_digest { 4 } else { 0 };
        let bytes = unit(4, agreement, &[7; 64], &[]);
        let parsed = parse(&bytes, Some(agreement)).expect("good").expect("whole");
        assert_eq!((parsed.body, parsed.head_bytes, parsed.data_bytes), (Body::Command([7; 64]), 72 + extra, 0));
        assert_eq!(parse(&bytes[..71 + extra], Some(agreement)), Ok(None));
        let bytes = unit(4, agreement, &[7; 64], &[9; 40]);
        let parsed = parse(&bytes, Some(agreement)).expect("good").expect("whole");
        assert_eq!((parsed.head_bytes, parsed.data_bytes), (72 + extra, 40));
        assert_eq!(parsed.has_data_digest, agreement.data_digest);
        assert_eq!(bytes.len(), parsed.head_bytes + 40 + extra);
    }
}

#[test]
fn a_wrong_header_ends_the_connection() {
    let bytes = unit(4, DIGESTS, &[7; 64], &[9; 40]);
    let sum = u32::from_le_bytes(bytes[72..76].try_into().expect("four"));
    assert_eq!(with(&bytes, Some(DIGESTS), &[(20, 8)]), Err(Fatal::HeaderDigest(sum)));
    assert_eq!(parse(&bytes, Some(PLAIN)), Err(Fatal::InvalidHeader(1)));
    let plain = unit(4, PLAIN, &[7; 64], &[9; 40]);
    let wrong = |changes: &[(usize, u8)]| with(&plain, Some(PLAIN), changes);
    assert_eq!(parse(&plain, Some(DIGESTS)), Err(Fatal::InvalidHeader(1)));
    assert_eq!(wrong(&[(1, 2)]), Err(Fatal::InvalidHeader(1)), "a data digest that was not agreed on");
    assert_eq!(wrong(&[(3, 71)]), Err(Fatal::InvalidHeader(3)));
    assert_eq!(wrong(&[(3, 74)]), Err(Fatal::InvalidHeader(3)), "not a multiple of four");
    assert_eq!(wrong(&[(3, 112)]), Err(Fatal::InvalidHeader(4)), "no data is left");
    let padded = wrong(&[(3, 76)]).expect("good").expect("whole");
    assert_eq!((padded.head_bytes, padded.data_bytes), (76, 36));
    assert_eq!(wrong(&[(0, 9)]), Err(Fatal::InvalidHeader(0)));
    assert_eq!(wrong(&[(4, 0), (5, 0)]), Err(Fatal::InvalidHeader(4)));
    let [low, middle, high, _] = (72 + HOST_DATA_BYTES_MAX).to_le_bytes();
    let parsed = wrong(&[(4, low), (5, middle), (6, high)]).expect("good").expect("its header is whole");
    assert_eq!(parsed.data_bytes, HOST_DATA_BYTES_MAX);
    assert_eq!(wrong(&[(4, low + 1), (5, middle), (6, high)]), Err(Fatal::LimitExceeded));
    assert_eq!(wrong(&[(4, 0xff), (5, 0xff), (6, 0xff), (7, 0xff)]), Err(Fatal::LimitExceeded));
}

#[test]
fn data_says_where_it_belongs() {
    let bytes = unit(6, DIGESTS, &transfer(1, 2, 3, 40), &[9; 40]);
    let parsed = parse(&bytes, Some(DIGESTS)).expect("good").expect("whole");
    assert_eq!(parsed.body, Body::HostData { command: 1, tag: 2, offset: 3, is_last: false });
    let wrong = unit(6, PLAIN, &transfer(1, 2, 3, 41), &[9; 40]);
    assert_eq!(parse(&wrong, Some(PLAIN)), Err(Fatal::InvalidHeader(16)));
    assert_eq!(parse(&unit(6, PLAIN, &transfer(1, 2, 3, 0), &[]), Some(PLAIN)), Err(Fatal::InvalidHeader(16)));
}

#[test]
fn a_host_may_end_the_connection_at_any_time() {
    let bytes = unit(2, PLAIN, &[5; 16], &[]);
    for agreement in [None, Some(PLAIN), Some(DIGESTS)] {
        let parsed = parse(&bytes, agreement).expect("good").expect("whole");
        assert_eq!(parsed.body, Body::HostTerminates(0x0505));
        assert_eq!(parse(&bytes[..23], agreement), Ok(None));
    }
}

#[test]
fn what_is_written_has_its_digests_and_its_alignment() {
    let mut output = Vec::new();
    write_ic_response(&mut output, DIGESTS);
    assert_eq!((output.len(), &output[..12]), (128, &[1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3][..]));
    assert_eq!(output[12..16], HOST_DATA_BYTES_MAX.to_le_bytes());
    output.clear();
    write_response(&mut output, DIGESTS, &[3; 16]);
    assert_eq!((output.len(), &output[..8]), (28, &[5, 1, 24, 0, 28, 0, 0, 0][..]));
    assert_eq!(output[24..], digest(0, &output[..24]).to_le_bytes());
    output.clear();
    let part = Part { command: 7, offset: 0, length: 16 };
    write_ready_to_transfer(&mut output, PLAIN, 9, part);
    assert_eq!(output, [9, 0, 24, 0, 24, 0, 0, 0, 7, 0, 9, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
    for (alignment, digests, offset) in
        [(0, false, 24), (0, true, 28), (3, true, 32), (31, true, 128), (31, false, 128)]
    {
        output.clear();
        let agreement = Agreement { header_digest: digests, data_digest: digests, alignment };
        write_data_header(&mut output, agreement, part, true);
        assert_eq!((output.len(), usize::from(output[3])), (offset, offset));
        let whole = length_of(offset) + 16 + if digests { 4 } else { 0 };
        assert_eq!(output[4..8], whole.to_le_bytes());
        assert_eq!(output[1], if digests { 0b1111 } else { 0b1100 });
    }
    output.clear();
    write_termination(&mut output, Fatal::HeaderDigest(5), &[8; 200]);
    assert_eq!((output.len(), &output[..10]), (152, &[3, 0, 24, 0, 152, 0, 0, 0, 3, 0][..]));
    assert_eq!(output[10..14], [5, 0, 0, 0]);
}
