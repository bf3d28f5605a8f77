//! Every bound of the control plane, beside those of [`sync_protocol::limits`]. What grows has one, or a retention.

use std::time::Duration;

/// Largest body of a call that has no bound of its own, in bytes.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How long a desired document is valid, in milliseconds. It is signed again when half of that is over.
pub const DESIRED_LIFE_MS: u64 = 7 * DAY_MS;
/// How long a question for the desired document is held when it does not say, in seconds.
pub const WAIT_SECS: u64 = 60;
/// Gateways that are told of news at once; more learn of it with their next question.
pub const WAITING_MAX: usize = 50_000;
/// Phases that are remembered of one gateway.
pub const PHASES_MAX: u64 = 200;
/// Log lines that are kept of one gateway.
pub const LOG_LINES_MAX: u64 = 5_000;
/// How long log lines are kept, in milliseconds.
pub const LOGS_KEPT_MS: u64 = 7 * DAY_MS;
/// Longest that log lines may be asked for at once, in minutes.
pub const LOG_MINUTES_MAX: u64 = 24 * 60;
/// How long a gateway that is away may still be asked to try a deployment again, in milliseconds.
pub const TRY_AGAIN_MS: u64 = DAY_MS;
/// How lately a gateway must have reported to be counted as heard of, in milliseconds.
pub const HEARD_MS: u64 = 3600 * 1000;
/// Unfinished uploads at once.
pub const UPLOADS_MAX: usize = 32;
/// Longest that nothing may come of a piece that is uploaded.
pub const UPLOAD_IDLE: Duration = Duration::from_secs(60);
/// On-line keys that are held: the one that signs, the next one, and those of before.
pub const ONLINE_KEYS_MAX: usize = 16;
/// How long an unfinished upload, or a blob to which nothing refers, is kept, in milliseconds.
pub const UNUSED_KEPT_MS: u64 = DAY_MS;
/// Most tags of one version.
pub const TAGS_MAX: usize = 32;
/// Longest key or value of a tag, in bytes.
pub const TAG_BYTES_MAX: usize = 256;
/// Most gateways of one group.
pub const GROUP_GATEWAYS_MAX: usize = 20_000;
/// Most groups that one gateway belongs to: each stands in its desired document.
pub const GROUPS_OF_GATEWAY_MAX: usize = 64;
/// Largest shadow document, in bytes: all of it may be the answer to a report.
pub const SHADOW_BYTES_MAX: usize = 32 * 1024;
/// Items of one page of a list, when the caller does not say.
pub const PAGE: u64 = 100;
/// Most items of one page of a list.
pub const PAGE_MAX: u64 = 1_000;
/// How long a request's body may take.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(60);
/// Bodies of signed requests that are held at once.
pub const BODIES_MAX: usize = 64;
/// Longest nonce of a request to be provisioned, in bytes.
pub const NONCE_BYTES_MAX: usize = 128;
/// Most gateways that one claim lets in.
pub const CLAIM_USES_MAX: u64 = 1_000_000;
/// Longest that a claim is good for, in milliseconds.
pub const CLAIM_LIFE_MS_MAX: u64 = 2 * 365 * DAY_MS;
/// How often it is noted that a token was used, in milliseconds: not each call is a write.
pub const USE_NOTED_MS: u64 = 60 * 1000;
/// Longest name of a token, in bytes.
pub const TOKEN_NAME_BYTES_MAX: usize = 64;
/// Batches of records that are taken in or wait to be written at once, each at most [`sync_protocol::limits::RECORDS_BYTES_MAX`].
pub const BATCHES_WAITING_MAX: usize = 32;
/// Batches of records that share one commit.
pub const BATCHES_TOGETHER_MAX: usize = 32;
/// Streams whose newest epoch is remembered in memory.
pub const STREAMS_CACHED_MAX: usize = 100_000;
/// How far the time of a record may move and it is still the same one, in milliseconds: clocks are set while records wait.
pub const SAME_RECORD_MS_MAX: u64 = 60 * 1000;
/// Records that are read at once.
pub const RECORDS_PAGE: u64 = 1_000;
/// How long records are kept when it is not said, in milliseconds.
pub const RECORDS_KEPT_MS: u64 = 90 * DAY_MS;
/// How many bytes of records are kept when it is not said.
pub const RECORDS_KEPT_BYTES: u64 = 20 * 1024 * 1024 * 1024;
/// How often it is looked whether our own certificate was signed anew.
pub const CERTIFICATE_LOOK: Duration = Duration::from_secs(2);
/// How often what is past its time goes, and our own certificate is looked at.
pub const HOUSEKEEPING: Duration = Duration::from_secs(600);
/// Connections that read from the database at once.
pub const READERS: u32 = 4;

const DAY_MS: u64 = 24 * 3600 * 1000;
