//! The handshake: from the greeting to an export, or to a farewell.
//!
//! # Invariants
//!
//! 1. Exactly one final reply per option, sent when all of the option's data has arrived; an option that is refused unread (too
//!    big, not known) has its data skipped first, so that the stream never loses its place.
//! 2. At most [`OPTION_BYTES_MAX`] bytes of an option are looked at, and they lie in the connection's input buffer: the handshake
//!    keeps no copy of anything a client sent.
//! 3. A metadata context is in force only if the last `SET_META_CONTEXT` succeeded for the very volume that is entered.
//!
//! # Life cycle
//!
//! ```text
//! ClientFlags ----> Options <----> Skip
//!     |              |    |
//!     | unknown      |    +-- EXPORT_NAME, GO of a known export --> Verdict::Enter
//!     v flags        +-- ABORT ----------------------------------> Verdict::Close
//! Verdict::Abort     +-- what cannot be answered ----------------> Verdict::Abort
//! ```
//!
//! `Verdict::Abort` is for violations of a MUST and for `EXPORT_NAME` of what cannot be entered: the protocol has no reply for
//! these. A client that is refused as a whole ([`Refusal`]) goes through the same states and gets the refusal's error to each option
//! until it leaves, as "Termination of the session during option haggling" demands.

use super::codec::{
    CLIENT_FLAGS_BYTES, ExportRequest, FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, InfoReply, OPTION_HEADER_BYTES,
    OptionHeader, ReplyStyle, export_flag, option, option_reply, parse_client_flags, parse_export_request,
    parse_meta_context_request, parse_option_header, reply, write_export_name_reply, write_info_reply,
    write_meta_context_reply, write_server_reply,
};
use crate::{
    base::{
        ObjectId,
        limits::{BLOCK_BYTES, REQUEST_BYTES_MAX},
    },
    node::request::{VolumeInfo, VolumeService},
};
use std::borrow::Cow;

/// Longest data of an option that is looked at: half of what the smallest input buffer of a connection holds. An export name and
/// seven metadata queries of the longest kind fit.
pub(super) const OPTION_BYTES_MAX: u32 = 32 << 10;

/// Longest data of an option that is skipped; a client that announces more is not haggling, and is disconnected.
pub(super) const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;

/// The number under which `base:allocation` is selected.
pub(super) const ALLOCATION_CONTEXT_ID: u32 = 1;

const _: () = assert!(OPTION_BYTES_MAX as usize + OPTION_HEADER_BYTES <= 64 << 10);

/// Why a client is turned away, politely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There are too many connections.
    Full,
    /// The server is being stopped.
    Stopping,
}

/// What a client has entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) volume: ObjectId,
    pub(super) style: ReplyStyle,
    /// `base:allocation` is selected.
    pub(super) allocation_context: bool,
}

/// How the handshake goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// With more input than there is.
    Wait,
    /// At once.
    Go,
    /// It is over: requests follow.
    Enter(Export),
    /// It is over: close when everything has been sent.
    Close,
    /// It is over: disconnect.
    Abort,
}

/// One step of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) consumed_bytes: usize,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    ClientFlags,
    Options,
    /// The rest of an option is thrown away, then `error` is the reply to it.
    Skip {
        option: u32,
        remaining_bytes: usize,
        error: u32,
        text: &'static str,
    },
}

/// A handshake.
#[derive(Debug)]
pub(super) struct Negotiation {
    stage: Stage,
    fixed_newstyle: bool,
    no_zeroes: bool,
    style: ReplyStyle,
    /// The volume for which `base:allocation` was selected last.
    allocation_context: Option<ObjectId>,
    refusal: Option<Refusal>,
}

/// Why an option failed: the reply's type and a text for people.
type OptionError = (u32, Cow<'static, str>);

const UNKNOWN_EXPORT: OptionError = (reply::ERR_UNKNOWN, Cow::Borrowed("no volume has this name"));
const NO_DATA: OptionError = (reply::ERR_INVALID, Cow::Borrowed("this option has no data"));

impl Negotiation {
    pub(super) fn new(refusal: Option<Refusal>) -> Self {
        Self {
            stage: Stage::ClientFlags,
            fixed_newstyle: false,
            no_zeroes: false,
            style: ReplyStyle::Simple,
            allocation_context: None,
            refusal,
        }
    }

    /// From now on every option fails.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.refusal.get_or_insert(refusal);
    }

    /// Goes one step on with `input`; what is to be sent is appended to `output`.
    pub(super) fn step<S: VolumeService>(&mut self, input: &[u8], service: &S, output: &mut Vec<u8>) -> Step {
        match self.stage {
            Stage::ClientFlags => self.take_client_flags(input),
            Stage::Skip { option, remaining_bytes, error, text } => {
                let consumed_bytes = input.len().min(remaining_bytes);
                let remaining_bytes = remaining_bytes - consumed_bytes;
                self.stage = Stage::Skip { option, remaining_bytes, error, text };
                if remaining_bytes > 0 {
                    return Step { consumed_bytes, verdict: Verdict::Wait };
                }
                option_reply(output, option, error, &[text.as_bytes()]);
                self.stage = Stage::Options;
                Step { consumed_bytes, verdict: Verdict::Go }
            }
            Stage::Options => match parse_option_header(input) {
                Ok(None) => Step { consumed_bytes: 0, verdict: Verdict::Wait },
                Ok(Some(header)) => self.take_option(header, input, service, output),
                Err(_) => Step { consumed_bytes: 0, verdict: Verdict::Abort },
            },
        }
    }

    fn take_client_flags(&mut self, input: &[u8]) -> Step {
        let Some(flags) = parse_client_flags(input) else { return Step { consumed_bytes: 0, verdict: Verdict::Wait } };
        self.fixed_newstyle = flags & FLAG_C_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & FLAG_C_NO_ZEROES != 0;
        self.stage = Stage::Options;
        let known = flags & !(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES) == 0;
        Step { consumed_bytes: CLIENT_FLAGS_BYTES, verdict: if known { Verdict::Go } else { Verdict::Abort } }
    }

    fn take_option<S: VolumeService>(
        &mut self,
        header: OptionHeader,
        input: &[u8],
        service: &S,
        output: &mut Vec<u8>,
    ) -> Step {
        let abort = Step { consumed_bytes: 0, verdict: Verdict::Abort };
        if header.length_bytes > OPTION_SKIP_BYTES_MAX {
            return abort;
        }
        if header.option != option::EXPORT_NAME && !self.fixed_newstyle {
            return abort;
        }
        let length_bytes = header.length_bytes as usize;
        if let Some((error, text)) = self.refuse_unread(header) {
            self.stage = Stage::Skip { option: header.option, remaining_bytes: length_bytes, error, text };
            return Step { consumed_bytes: OPTION_HEADER_BYTES, verdict: Verdict::Go };
        }
        if header.length_bytes > OPTION_BYTES_MAX {
            return abort;
        }
        let Some(data) = input.get(OPTION_HEADER_BYTES..OPTION_HEADER_BYTES + length_bytes) else {
            return Step { consumed_bytes: 0, verdict: Verdict::Wait };
        };
        let verdict = match self.answer(header.option, data, service, output) {
            Ok(verdict) => verdict,
            Err(_) if header.option == option::EXPORT_NAME => Verdict::Abort,
            Err((error, text)) => {
                option_reply(output, header.option, error, &[text.as_bytes()]);
                Verdict::Go
            }
        };
        Step { consumed_bytes: OPTION_HEADER_BYTES + length_bytes, verdict }
    }

    /// Why an option need not be read at all.
    fn refuse_unread(&self, header: OptionHeader) -> Option<(u32, &'static str)> {
        match header.option {
            option::EXPORT_NAME | option::ABORT => return None,
            option::LIST
            | option::STARTTLS
            | option::INFO
            | option::GO
            | option::STRUCTURED_REPLY
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT
            | option::EXTENDED_HEADERS => {}
            _ => return Some((reply::ERR_UNSUP, "this server does not know the option")),
        }
        match self.refusal {
            Some(Refusal::Full) => Some((reply::ERR_POLICY, "the server has as many connections as it is allowed")),
            Some(Refusal::Stopping) => Some((reply::ERR_SHUTDOWN, "the server is being stopped")),
            None if header.length_bytes > OPTION_BYTES_MAX => {
                Some((reply::ERR_TOO_BIG, "the option is longer than 32 KiB"))
            }
            None => None,
        }
    }

    fn answer<S: VolumeService>(
        &mut self,
        option: u32,
        data: &[u8],
        service: &S,
        output: &mut Vec<u8>,
    ) -> Result<Verdict, OptionError> {
        match option {
            option::EXPORT_NAME => return self.export_name(data, service, output),
            option::ABORT => {
                option_reply(output, option, reply::ACK, &[]);
                return Ok(Verdict::Close);
            }
            option::LIST => {
                no_data(data)?;
                for volume in service.volumes().into_iter().filter(|volume| volume.offline.is_none()) {
                    write_server_reply(output, option, &volume.name, &describe(&volume));
                }
            }
            option::STARTTLS => {
                no_data(data)?;
                return Err((reply::ERR_UNSUP, "this server has no TLS".into()));
            }
            option::INFO => {
                self.inform(option, data, service, output)?;
            }
            option::GO => {
                let export = self.inform(option, data, service, output)?;
                option_reply(output, option, reply::ACK, &[]);
                return Ok(Verdict::Enter(export));
            }
            option::STRUCTURED_REPLY => {
                no_data(data)?;
                if self.style == ReplyStyle::Extended {
                    return Err((reply::ERR_EXT_HEADER_REQD, "extended headers are in force already".into()));
                }
                self.style = ReplyStyle::Structured;
            }
            option::EXTENDED_HEADERS => {
                no_data(data)?;
                self.style = ReplyStyle::Extended;
            }
            option::LIST_META_CONTEXT => Self::list_meta_context(data, service, output)?,
            option::SET_META_CONTEXT => self.set_meta_context(data, service, output)?,
            _ => unreachable!("unknown options are refused unread"),
        }
        option_reply(output, option, reply::ACK, &[]);
        Ok(Verdict::Go)
    }

    fn export_name<S: VolumeService>(
        &self,
        data: &[u8],
        service: &S,
        output: &mut Vec<u8>,
    ) -> Result<Verdict, OptionError> {
        let usable = self.refusal.is_none() && self.style != ReplyStyle::Extended;
        let name = str::from_utf8(data).ok().filter(|_| usable).ok_or(UNKNOWN_EXPORT)?;
        let volume = usable_volume(service, name)?;
        let export = self.export(&volume);
        write_export_name_reply(output, volume.size_bytes, export.transmission_flags(), !self.no_zeroes);
        Ok(Verdict::Enter(export))
    }

    /// Replies to `INFO` and `GO`, short of the final one.
    fn inform<S: VolumeService>(
        &self,
        option: u32,
        data: &[u8],
        service: &S,
        output: &mut Vec<u8>,
    ) -> Result<Export, OptionError> {
        let request: ExportRequest<'_> = parse_export_request(data)
            .ok_or((reply::ERR_INVALID, "the option's lengths do not fit together".into()))?;
        let volume = usable_volume(service, request.name)?;
        let export = self.export(&volume);
        let description = describe(&volume);
        let mut info = |info| write_info_reply(output, option, info);
        info(InfoReply::Export { size_bytes: volume.size_bytes, flags: export.transmission_flags() });
        if request.wants_name {
            info(InfoReply::Name(&volume.name));
        }
        if request.wants_description {
            info(InfoReply::Description(&description));
        }
        if request.wants_block_size {
            info(InfoReply::BlockSize {
                min_bytes: 1,
                preferred_bytes: u32::try_from(BLOCK_BYTES).expect("4096"),
                payload_bytes_max: REQUEST_BYTES_MAX,
            });
        }
        Ok(export)
    }

    fn list_meta_context<S: VolumeService>(data: &[u8], service: &S, output: &mut Vec<u8>) -> Result<(), OptionError> {
        let request =
            parse_meta_context_request(data).ok_or((reply::ERR_INVALID, "the queries' lengths do not fit".into()))?;
        usable_volume(service, request.name)?;
        if request.query_count == 0 || request.allocation || request.base_wildcard {
            write_meta_context_reply(output, option::LIST_META_CONTEXT, 0);
        }
        Ok(())
    }

    fn set_meta_context<S: VolumeService>(
        &mut self,
        data: &[u8],
        service: &S,
        output: &mut Vec<u8>,
    ) -> Result<(), OptionError> {
        self.allocation_context = None;
        if self.style == ReplyStyle::Simple {
            return Err((
                reply::ERR_INVALID,
                "metadata contexts need structured replies or extended headers first".into(),
            ));
        }
        let request =
            parse_meta_context_request(data).ok_or((reply::ERR_INVALID, "the queries' lengths do not fit".into()))?;
        let volume = usable_volume(service, request.name)?;
        if request.allocation {
            self.allocation_context = Some(volume.id);
            write_meta_context_reply(output, option::SET_META_CONTEXT, ALLOCATION_CONTEXT_ID);
        }
        Ok(())
    }

    fn export(&self, volume: &VolumeInfo) -> Export {
        Export { volume: volume.id, style: self.style, allocation_context: self.allocation_context == Some(volume.id) }
    }
}

impl Export {
    /// What the client may use.
    fn transmission_flags(&self) -> u16 {
        let always = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::SEND_TRIM
            | export_flag::SEND_WRITE_ZEROES
            | export_flag::CAN_MULTI_CONN
            | export_flag::SEND_CACHE
            | export_flag::SEND_FAST_ZERO;
        let structured = if self.style == ReplyStyle::Simple { 0 } else { export_flag::SEND_DF };
        let payload = self.style == ReplyStyle::Extended && self.allocation_context;
        always | structured | if payload { export_flag::BLOCK_STATUS_PAYLOAD } else { 0 }
    }
}

/// The volume that a client asks for.
fn usable_volume<S: VolumeService>(service: &S, name: &str) -> Result<VolumeInfo, OptionError> {
    let volume = service.volume(name).ok_or(UNKNOWN_EXPORT)?;
    match &volume.offline {
        None => Ok(volume),
        Some(offline) => {
            Err((reply::ERR_POLICY, format!("the volume is offline: {offline}: see `twinlog status`").into()))
        }
    }
}

fn no_data(data: &[u8]) -> Result<(), OptionError> {
    if data.is_empty() { Ok(()) } else { Err(NO_DATA) }
}

/// The text about a volume that clients show to people.
fn describe(volume: &VolumeInfo) -> String {
    format!("Twinlog volume {}, {} bytes", volume.name, volume.size_bytes)
}
