//! Bounds of what one side takes from the other, before anything of it is trusted.

/// Largest root document, in bytes.
pub const ROOT_BYTES_MAX: usize = 256 * 1024;
/// Largest release, in bytes.
pub const RELEASE_BYTES_MAX: usize = 64 * 1024;
/// Largest deployment, in bytes.
pub const DEPLOYMENT_BYTES_MAX: usize = 1024 * 1024;
/// Largest desired document, in bytes.
pub const DESIRED_BYTES_MAX: usize = 64 * 1024;
/// Largest file with one signed document, in bytes: indented it is longer than what is signed.
pub const ENVELOPE_BYTES_MAX: usize = 2 * DEPLOYMENT_BYTES_MAX;
/// Deepest nesting of a signed document.
pub const JSON_DEPTH_MAX: usize = 24;
/// Most values (objects, lists, texts, numbers) of a signed document: in memory each takes a multiple of the bytes that it may have in JSON.
pub const JSON_VALUES_MAX: usize = 65_536;
/// Largest answer to a question for the desired deployment, in bytes. Read, it takes up to sixteen times as much of a small gateway's memory.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most roots in one answer; more come with the next one.
pub const ROOTS_MAX: usize = 64;
/// Most artifacts of one deployment.
pub const ARTIFACTS_MAX: usize = 256;
/// Most deployments of which a gateway remembers that it accepted them.
pub const ACCEPTED_MAX: usize = 256;
/// Most releases of which a gateway remembers what they were.
pub const KNOWN_RELEASES_MAX: usize = 1024;
/// Largest blob, in bytes.
pub const BLOB_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Largest report, in bytes.
pub const REPORT_BYTES_MAX: usize = 256 * 1024;
/// Largest batch of records, in bytes before and after decompression.
pub const RECORDS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most signatures of one document.
pub const SIGNATURES_MAX: usize = 32;
/// Longest that a question for the desired deployment is held, in seconds.
pub const WAIT_SECS_MAX: u64 = 300;
